"""Evidence: epochs, choices, certificates, checked with the trust root and nothing else.

Above the bus it borrows the envelope's codec only: nothing here talks to a broker or reads a clock. One
module touches a disk: ``journal``, where ballots and votes are kept before they are sent.
"""
