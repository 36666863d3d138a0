"""The ATT&CK techniques that findings name: ids and names in one place (ATT&CK for Enterprise v16)."""

from __future__ import annotations

from tocsin.contracts.observations import Technique

REMOTE_SERVICES = Technique(id="T1021", name="Remote Services")
NETWORK_SERVICE_DISCOVERY = Technique(id="T1046", name="Network Service Discovery")
EXFILTRATION_OVER_ALTERNATIVE_PROTOCOL = Technique(id="T1048", name="Exfiltration Over Alternative Protocol")
APPLICATION_LAYER_PROTOCOL = Technique(id="T1071", name="Application Layer Protocol")
DNS = Technique(id="T1071.004", name="Application Layer Protocol: DNS")
VALID_ACCOUNTS = Technique(id="T1078", name="Valid Accounts")
BRUTE_FORCE = Technique(id="T1110", name="Brute Force")
EXPLOIT_PUBLIC_FACING_APPLICATION = Technique(id="T1190", name="Exploit Public-Facing Application")
EXPLOITATION_OF_REMOTE_SERVICES = Technique(id="T1210", name="Exploitation of Remote Services")
RESOURCE_HIJACKING = Technique(id="T1496", name="Resource Hijacking")
NETWORK_DENIAL_OF_SERVICE = Technique(id="T1498", name="Network Denial of Service")
DOMAIN_GENERATION_ALGORITHMS = Technique(
    id="T1568.002", name="Dynamic Resolution: Domain Generation Algorithms"
)
NON_STANDARD_PORT = Technique(id="T1571", name="Non-Standard Port")
ASYMMETRIC_CRYPTOGRAPHY = Technique(id="T1573.002", name="Encrypted Channel: Asymmetric Cryptography")
ACTIVE_SCANNING = Technique(id="T1595", name="Active Scanning")
