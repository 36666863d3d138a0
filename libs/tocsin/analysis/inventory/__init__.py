"""Which public-key cryptography an organisation's endpoints use, and what a quantum computer would do to it.

``zeek_tls`` and ``tls`` read what is seen (Zeek's ssl and x509 logs; a server's answer to a ClientHello),
``model`` keeps it, ``ranking`` says what is worst and why, ``cbom`` writes it as a CycloneDX CBOM. All pure:
probing, which needs the network, is :mod:`tocsin.agent.roles.probe`.

The method, its formula and its sources: docs/explanation/quantum-vulnerability.md.
"""
