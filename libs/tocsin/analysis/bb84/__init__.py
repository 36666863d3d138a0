"""BB84 key distribution (Bennett and Brassard 1984): circuits, and what both ends do with their readings."""
