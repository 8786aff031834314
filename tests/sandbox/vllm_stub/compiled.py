"""The stub's compile cache: where the real one writes its graphs, and believed as blindly when it is found there."""

import hashlib
import os
import random
from pathlib import Path

from tests.sandbox.vllm_stub.arguments import Arguments

GRAPH_BYTES = 300_000


def compile_model(arguments: Arguments) -> bool:
    """Say on the log, as vLLM does, whether the graphs were compiled or found; write them if they were not there."""
    root = Path(os.environ.get("VLLM_CACHE_ROOT") or Path.home() / ".cache" / "vllm")
    # The real one goes by the whole path, which on rented machines is always the same.
    asked = f"{arguments.model.name} {arguments.max_model_len} {arguments.tensor_parallel} {arguments.quantization}"
    key = hashlib.sha256(asked.encode()).hexdigest()[:10]
    graph = root / "torch_compile_cache" / "torch_aot_compile" / key / "rank_0_0" / "model"
    if graph.exists():
        print("INFO:     Directly load AOT compilation from path", graph, flush=True)
        return False
    graph.parent.mkdir(parents=True, exist_ok=True)
    (root / "modelinfos").mkdir(exist_ok=True)
    (root / "modelinfos" / f"{key}.json").write_text("{}")
    graph.write_bytes(random.Random(key).randbytes(GRAPH_BYTES))
    kernel = graph.parent / "kernel.so"
    kernel.write_bytes(b"\x7fELF")
    kernel.chmod(0o700)
    print("INFO:     torch.compile takes a while the first time", flush=True)
    return True
