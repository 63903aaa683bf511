"""torch's compiler is not loaded by what does not compile, and works as ever where something does."""

import subprocess
import sys

PROGRAM = """
import os, sys, torch
from torch import nn
from trainers import engine

def loaded():
    return [name for name in sys.modules if name.startswith("torch._dynamo.")]

network = nn.Linear(2, 2)
optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
network(torch.ones(1, 2)).sum().backward()
optimizer.step()
with torch.device("meta"):
    torch.cat([torch.ones(2), nn.init.normal_(torch.empty(2))])
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
make = engine.deepspeed_engines(engine.EngineConfig(zero_stage=2), device=torch.device("cpu"))
partitioned = make(nn.Linear(2, 2), lambda weights: torch.optim.Adam(weights, lr=0.1))
partitioned.backward(partitioned(torch.ones(1, 2)).sum())
partitioned.step()
torch.distributed.destroy_process_group()
assert not loaded(), loaded()

import torch._dynamo.config
assert isinstance(torch._dynamo.config.recompile_limit, int)
assert torch._dynamo is sys.modules["torch._dynamo"]
assert type(torch._dynamo) is type(sys)
assert callable(torch._dynamo.trace_rules.check)
print(torch.compile(lambda x: torch.sin(x) + 1, backend="eager")(torch.zeros(2)).tolist())
"""


def test_a_step_loads_no_compiler_and_whoever_wants_it_gets_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[1.0, 1.0]"), done.stderr
