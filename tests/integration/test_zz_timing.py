from __future__ import annotations
import asyncio, time
from support import *
from integration.compute import *
from integration.test_workflow import *
async def test_t(world):
    seen = await watcher(world)
    e={"OMP_NUM_THREADS":"1"}
    t=time.time()
    async with process_of(world, ServiceName.BALANCER, "0", **e), process_of(world, ServiceName.WORKER, "0", **e), process_of(world, ServiceName.QPU_MANAGER, "0", **e), process_of(world, ServiceName.WORKFLOW, "0", **e):
        bus = await analyst(world)
        for n in range(4):
            b=time.time()
            a=await bus.request(WORKFLOW_SUBMIT, request(n), timeout_s=20)
            c=time.time()
            await eventually(lambda: len(seen.made)==n+1, within_s=60)
            print("submit %.0f ms, end %.0f ms"%((c-b)*1e3,(time.time()-b)*1e3), "since start %.1f"%(c-t))
            if n in (0,3):
                for s in seen.stages: 
                    if s.workflow==a.workflow: print("  ",s.stage,s.state.value,round(s.elapsed_ms),s.detail)
                print(seen.made[-1].failure, seen.made[-1].assessment and seen.made[-1].assessment.confidence)
        kv = await bus.connection.js.key_value("workflows")
        for k in await kv.keys(): print("record bytes", len((await kv.get(k)).value))
