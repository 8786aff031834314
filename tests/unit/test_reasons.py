"""Why an engine ended: told from logs that vLLM 0.32 really wrote, and from the words of what a CPU cannot do wrong."""

from pathlib import Path

import pytest

from bootstrap.host.watching.reasons import HOST_FAULTS, NAMES, Reason, explain

LOGS = Path(__file__).parent / "data" / "engine"
"""Written by vLLM 0.32 on a CPU, given each a fault on purpose; paths and long lines were shortened."""

RECORDED = [
    ("bad_argument", "bad_argument", "unrecognized arguments: --no-such-flag 1"),
    ("bad_value", "bad_argument", "argument --max-num-seqs: invalid int value: 'many'"),
    ("runner", "bad_argument", "argument --runner: invalid choice: 'nonsense'"),
    ("bad_quantization", "bad_argument", "Unknown quantization method: nonsense"),
    ("tp", "bad_argument", "cannot be divided among 3 GPUs: set need.gpu_count"),
    ("architecture", "unsupported_architecture", "['NoSuchForCausalLM']"),
    ("model_type", "unsupported_architecture", "`nosuch`"),
    ("context", "context_too_long", "a context of 131072 tokens"),
    ("no_weights", "missing_file", "push the model again"),
    ("broken_weights", "missing_file", "push the model again"),
    ("no_tokenizer", "missing_file", "push the model again"),
    ("no_config", "missing_file", "push the model again"),
    ("kv_room", "no_kv_cache_room", "raise need.min_vram_gib"),
    ("kv_small", "no_kv_cache_room", "set model.max_model_len to 1920 or less"),
    ("killed", "engine_died", "without saying why"),
    ("memory_taken", "out_of_host_memory", "the memory of the machine itself"),
]


@pytest.mark.parametrize(("log", "name", "said"), RECORDED, ids=[log for log, _, _ in RECORDED])
def test_a_recorded_log_is_explained(log: str, name: str, said: str) -> None:
    reason = explain((LOGS / f"{log}.log").read_text(encoding="utf-8").splitlines())
    assert reason.name == name
    assert said in reason.message


def test_every_recorded_log_is_looked_at() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == {log for log, _, _ in RECORDED}


CORE = "(EngineCore pid=490) ERROR 11-27 11:09:05 [core.py:1510] "


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        pytest.param(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 786.00 MiB. GPU 0 has a total capacity of"
            " 79.11 GiB of which 140.75 MiB is free.",
            "cuda_out_of_memory",
            "need.min_vram_gib",
            id="weights-too-large",
        ),
        pytest.param(
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try"
            " lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
            "cuda_out_of_memory",
            "--max-num-seqs",
            id="warm-up-too-large",
        ),
        pytest.param(
            "RuntimeError: CUDA error: out of memory", "cuda_out_of_memory", "quantized", id="cuda-out-of-memory"
        ),
        pytest.param(
            "ValueError: Free memory on device cuda:0 (3.2/23.65 GiB) on startup is less than desired GPU memory"
            " utilization (0.92, 21.75 GiB). Decrease GPU memory utilization or reduce GPU memory used by other"
            " processes.",
            "gpu_memory_taken",
            "3.2/23.65 GiB are free",
            id="somebody-else-has-the-memory",
        ),
        pytest.param(
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "gpu_too_old",
            "need.gpus",
            id="no-kernel-for-this-gpu",
        ),
        pytest.param(
            "  Value error, The quantization method fp8 is not supported for the current GPU. Minimum capability: 80."
            " Current capability: 75. [type=value_error, input_value=ArgsKwargs(())]",
            "gpu_too_old",
            "quantization",
            id="quantization-needs-a-newer-gpu",
        ),
        pytest.param(
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
            "gpu_not_usable",
            "another machine",
            id="driver-too-old",
        ),
        pytest.param(
            "RuntimeError: Failed to infer device type, please set the environment variable",
            "gpu_not_usable",
            "another machine",
            id="no-gpu",
        ),
        pytest.param(
            "RuntimeError: CUDA error: invalid device ordinal", "gpu_not_usable", "machine", id="a-gpu-is-missing"
        ),
        pytest.param(
            "RuntimeError: CUDA error: uncorrectable ECC error encountered", "gpu_not_usable", "machine", id="ecc"
        ),
        pytest.param("pynvml.NVMLError_GpuIsLost: GPU is lost", "gpu_not_usable", "another machine", id="gpu-lost"),
        pytest.param(
            "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
            "gpu_error",
            "`an illegal memory access was encountered`",
            id="illegal-access",
        ),
        pytest.param(
            "ValueError: The repository /models/x contains custom code which must be executed to correctly load",
            "foreign_code",
            "code of its own",
            id="custom-code",
        ),
        pytest.param(
            "OSError: /models/x does not appear to have a file named preprocessor_config.json. Checkout",
            "missing_file",
            "(preprocessor_config.json)",
            id="file-named",
        ),
        pytest.param(
            "FileNotFoundError: [Errno 2] No such file or directory: '/w/models/x/tokenizer.model'",
            "missing_file",
            "('/w/models/x/tokenizer.model')",
            id="file-not-found",
        ),
        pytest.param(
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s):"
            " {'EngineCore_DP0': -9}",
            "out_of_host_memory",
            "the memory of the machine itself",
            id="killed-by-the-kernel",
        ),
        pytest.param(
            "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.",
            "out_of_host_memory",
            "the memory of the machine itself",
            id="worker-killed-by-the-kernel",
        ),
        pytest.param("MemoryError", "out_of_host_memory", "machine itself", id="python-has-no-memory"),
        pytest.param("OSError: [Errno 28] No space left on device", "disk_full", "need.disk_gb", id="disk-full"),
        pytest.param("OSError: [Errno 98] Address already in use", "address_in_use", "socket", id="socket-in-use"),
        pytest.param(
            "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory",
            "broken_image",
            "(ImportError: libcudart.so.13",
            id="library-missing",
        ),
        pytest.param("TimeoutError: RPC call to execute_model timed out.", "engine_hung", "in time", id="gpu-hangs"),
        pytest.param(
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for"
            " the root cause.",
            "engine_died",
            "without saying why",
            id="engine-died-while-serving",
        ),
    ],
)
def test_what_a_cpu_cannot_do_wrong_is_explained_by_its_words(line: str, name: str, said: str) -> None:
    end = (
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
    )
    for log in ([line], [CORE + line, "Traceback (most recent call last):", end]):
        reason = explain(log)
        assert reason.name == name
        assert said in reason.message
        assert "{" not in reason.message


def test_what_was_said_in_passing_does_not_count() -> None:
    chatter = [
        "(APIServer pid=1) INFO 11-27 11:09:05 [utils.py:1] args: {'`trust_remote_code=True`', 'CUDA out of memory'}",
        "(APIServer pid=1) WARNING 11-27 11:09:05 [utils.py:1] No space left on device for the usage report",
        "WARNING 11-27 11:09:05 [utils.py:1] NVMLError: not here",
    ]
    assert explain([*chatter, "vllm: error: unrecognized arguments: --x"]).name == "bad_argument"


@pytest.mark.parametrize(
    "sign",
    [
        "INFO:     Application startup complete.",
        "(APIServer pid=1) INFO 11-27 11:09:05 [loggers.py:271] Engine 000: Avg prompt throughput: 0.4 tokens/s",
        '(APIServer pid=1) INFO:     - "POST /v1/completions HTTP/1.1" 400 Bad Request',
    ],
)
def test_an_engine_that_served_does_not_end_of_what_a_client_sent(sign: str) -> None:
    blamed = ["  Value error, a client's mistake", "FileNotFoundError: No such file or directory: '/picture.png'"]
    died = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
    assert explain([sign, *blamed, died]).name == "engine_died"
    assert explain([sign, *blamed, "torch.OutOfMemoryError: CUDA out of memory.", died]).name == "cuda_out_of_memory"
    assert explain([*blamed, died]).name != "engine_died"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param([], "it ended without a word", id="nothing"),
        pytest.param(["", "  "], "it ended without a word", id="nothing-but-blanks"),
        pytest.param(
            ["Segmentation fault (core dumped)"], "its last words: Segmentation fault (core dumped)", id="last"
        ),
        pytest.param(
            ["ValueError: something new", "frame", "frame"],
            "its last words: ValueError: something new",
            id="last-error",
        ),
        pytest.param(
            ["INFO 11-27 11:09:05 [x.py:1] fine"], "its last words: INFO 11-27 11:09:05 [x.py:1] fine", id="info"
        ),
        pytest.param(["x" * 5000], f"its last words: {'x' * 200}…", id="long"),
    ],
)
def test_what_nobody_knows_is_told_by_its_last_words(lines: list[str], message: str) -> None:
    assert explain(lines) == Reason("unknown", message)


def test_names_are_fit_for_a_label() -> None:
    assert all(name.replace("_", "").isalpha() and name.islower() for name in NAMES)
    assert HOST_FAULTS < NAMES
    assert {"cuda_out_of_memory", "unsupported_architecture", "bad_argument", "missing_file", "unknown"} < NAMES
