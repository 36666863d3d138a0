"""A decision's end that is true, without anybody having decided: an epoch of its own, its instance's commit."""

from __future__ import annotations

import time

from council import proposal_body
from support import DOMAIN, World

from tocsin.bus import Bus
from tocsin.cli.authority import sign_as_root
from tocsin.contracts.catalogue import CONSENSUS_EPOCH, CONSENSUS_EPOCHS, CONSENSUS_PROPOSAL, VOTE
from tocsin.contracts.decisions import DecisionAnnounced, Outcome, Step, Vote
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Algorithm
from tocsin.evidence.choices import close_value
from tocsin.evidence.epochs import EPOCH_AUDIENCE, make_epoch


async def closed_by(world: World, instance: Bus, *, number: int = 0, why: str = "") -> DecisionAnnounced:
    """Return how a question ended: closed, by ``instance``, in an epoch in which it decides alone."""
    admin = await world.agent(Role.ADMIN, f"admin-of-{number}")
    key, admins = instance.credentials.key, admin.credentials.key
    strangers = [SpiffeId.agent(DOMAIN, Role.SENTINEL, f"seat-{i}") for i in range(2)]
    record = make_epoch(
        number=number,
        trust_domain=DOMAIN,
        participants=[
            (admin.id, admins.signer.key_id, int(admins.algorithm)),
            *((one, bytes(31) + bytes((i,)), Algorithm.ML_DSA_44) for i, one in enumerate(strangers)),
        ],
        instances=[(instance.id, key.signer.key_id, int(key.algorithm))],
        created_ns=time.time_ns(),
    )
    epoch = sign_as_root(world.authority, CONSENSUS_EPOCH.request_type, record, audience=EPOCH_AUDIENCE)
    await instance.send(CONSENSUS_EPOCHS.at(number=str(number)), epoch, stream=CONSENSUS_EPOCHS.stream)
    proposal = await admin.make(CONSENSUS_PROPOSAL, proposal_body(epoch.leaf), audience="all")
    value = close_value(proposal.leaf, 1)
    vote = Vote(step=Step.VOTE2, epoch=epoch.leaf, decision=proposal.leaf, round=1, view=1, value=value)
    committed = await instance.make(VOTE, vote, audience=EPOCH_AUDIENCE)
    return DecisionAnnounced(
        decision=proposal.leaf,
        epoch=epoch.leaf,
        outcome=Outcome.CLOSED,
        why=why,
        option=None,
        certificate=None,
        certificate_bytes=0,
        object_name=None,
        round=1,
        participants=3,
        quorum=3,
        ballots_for=0,
        ballots_received=0,
        missing=(),
        elapsed_ms=1.0,
        commit=(committed.data,),
        keys=(key.signer.public_key, admins.signer.public_key),
        proposal=proposal.data,
    )
