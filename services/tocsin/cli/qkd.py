"""``tocsin qkd``: a simulated QKD link, and a key server over it, for tests and demonstrations."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tocsin.bus import stop_on_signal
from tocsin.contracts.errors import InvalidInputError
from tocsin.telemetry import configure_logging

app = typer.Typer(
    help="Simulated quantum key distribution: no physical security, for tests and demonstrations.",
    no_args_is_help=True,
)
NOTE = "simulated link: no physical security, for tests and demonstrations only"
EavesdropperOption = Annotated[
    bool, typer.Option("--eavesdropper", help="Somebody intercepts and resends every photon.")
]
ErrorsOption = Annotated[float, typer.Option(min=0.0, max=0.5, help="Error rate of the link itself.")]


@app.command()
def run(eavesdropper: EavesdropperOption = False, errors: ErrorsOption = 0.01) -> None:
    """Send the photons of one BB84 run and show what both ends make of them."""
    from tocsin.qpu_manager.qkd.link import SimulatedLink  # noqa: PLC0415 - brings the quantum libraries

    figures = SimulatedLink(errors=errors, eavesdropper=eavesdropper).run().figures
    console = Console()
    console.print(f"photons    {figures.photons}")
    console.print(f"sifted     {figures.sifted}, of which {figures.sampled} were compared")
    console.print(f"errors     {figures.error_rates[0]:.2%} in Z, {figures.error_rates[1]:.2%} in X")
    console.print(f"corrected  {figures.corrected} errors, {figures.leaked_bits} parities told")
    console.print(f"secret     {figures.secret_bits} bits, {figures.secret_bits // 256} keys of 256")
    console.print(NOTE, style="yellow")


@app.command()
def serve(
    sae: Annotated[list[str], typer.Option(help="A host that may ask; give all.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8014,
    eavesdropper: EavesdropperOption = False,
    errors: ErrorsOption = 0.01,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Authority of clients' certificates; their common name is their SAE.")
    ] = None,
) -> None:
    """Serve keys of a simulated BB84 link by ETSI GS QKD 014, until Ctrl-C."""
    from tocsin.qpu_manager.qkd.app import KeyService  # noqa: PLC0415 - brings the web libraries
    from tocsin.qpu_manager.qkd.link import SimulatedLink  # noqa: PLC0415 - brings the quantum libraries
    from tocsin.qpu_manager.qkd.server import KeyServer, TlsFiles  # noqa: PLC0415 - as above

    given = [one for one in (tls_cert, tls_key, client_ca) if one is not None]
    if len(given) not in {0, 3}:
        raise InvalidInputError(
            "--tls-cert, --tls-key and --client-ca go together", reason="bad_qkd_files", advice="give all three"
        )
    tls = TlsFiles(*given) if given else None
    configure_logging("qkd")
    link = SimulatedLink(errors=errors, eavesdropper=eavesdropper)

    async def until_stopped() -> None:
        stop = stop_on_signal()
        async with KeyServer(KeyService(lambda: link.run().key, sae), host=host, port=port, tls=tls) as server:
            print(f"serving keys at {server.url} ({NOTE})", file=sys.stderr, flush=True)  # noqa: T201 - for people
            await stop.wait()

    asyncio.run(until_stopped())
