"""Set up the catalogue's streams and buckets on a broker. Idempotent: an existing one is updated."""

from __future__ import annotations

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext, api

from tocsin.bus.connection import Connection, translate
from tocsin.bus.settings import BusSettings
from tocsin.contracts.catalogue import BUCKETS, CERTIFICATES, IDENTITIES, STREAMS
from tocsin.contracts.subjects import PREFIX
from tocsin.telemetry import Metrics

DUPLICATE_WINDOW_S = 120
CERTIFICATES_MAX_BYTES = 4 * 1024**3


async def provision(settings: BusSettings, metrics: Metrics) -> None:
    """Connect, set everything up, and leave."""
    connection = await Connection.open(settings, metrics, name="provision")
    try:
        for stream in STREAMS:
            await _stream(
                connection.js,
                api.StreamConfig(
                    name=stream.name,
                    subjects=[f"{PREFIX}.{subject}" for subject in stream.subjects],
                    retention=api.RetentionPolicy(stream.retention),
                    max_age=float(stream.max_age_s),
                    max_bytes=stream.max_bytes,
                    discard=api.DiscardPolicy.NEW if stream.retention == "workqueue" else api.DiscardPolicy.OLD,
                    storage=api.StorageType.FILE,
                    duplicate_window=float(DUPLICATE_WINDOW_S),
                    description=stream.doc,
                ),
            )
        ages = {IDENTITIES: 0} | {bucket.name: bucket.max_age_s for bucket in BUCKETS}
        for name, max_age_s in ages.items():
            await connection.js.create_key_value(
                config=api.KeyValueConfig(
                    bucket=name, history=1, ttl=float(max_age_s) or None, storage=api.StorageType.FILE
                )
            )
        await connection.js.create_object_store(
            CERTIFICATES,
            config=api.ObjectStoreConfig(
                bucket=CERTIFICATES, storage=api.StorageType.FILE, max_bytes=CERTIFICATES_MAX_BYTES
            ),
        )
    except (TimeoutError, nats.errors.Error) as error:
        raise translate(error, "setting up streams and buckets") from error
    finally:
        await connection.close()


async def _stream(js: JetStreamContext, config: api.StreamConfig) -> None:
    try:
        await js.add_stream(config)
    except nats.js.errors.BadRequestError:
        await js.update_stream(config)
