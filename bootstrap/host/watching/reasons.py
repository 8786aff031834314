"""Why an engine ended, read from its own log: a name for metrics and a sentence for whoever must change something.

Pure. Runs on the machine and on the operator's: standard library only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why an engine ended.

    Attributes:
        name: One of NAMES, fit for a label.
        message: What was found and what to change, in one sentence.
    """

    name: str
    message: str


@dataclass(frozen=True)
class _Rule:
    """How a reason is known.

    Attributes:
        pattern: What the log says; what it catches as `said` goes into the message.
        message: With `{said}` where that goes.
    """

    name: str
    pattern: re.Pattern[str]
    message: str


UNKNOWN = "unknown"
HOST_FAULTS = frozenset({"gpu_not_usable", "gpu_memory_taken"})
"""Reasons that another machine of the same kind would not have."""

_SAID_CHARACTERS = 200


def _rule(name: str, pattern: str, message: str) -> _Rule:
    return _Rule(name, re.compile(pattern), message)


# The first rule that any line fulfils: what is particular stands before what vLLM says of everything. Sources: vLLM
# 0.32 (the files named), its own logs where the CPU build can be made to fail so (tests/unit/data/engine), and for
# CUDA's words torch and the threads vllm-project/vllm #12030, #19906.
_RULES = (
    _rule(
        "gpu_memory_taken",
        r"Free memory on device \S+ \((?P<said>\S+ GiB)\) on startup is less than desired GPU memory utilization",
        "something else holds the GPU's memory, {said} are free; if another machine says so too, lower"
        " --gpu-memory-utilization in model.vllm_args",
    ),  # v1/worker/utils.py
    _rule(
        "cuda_out_of_memory",
        r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|cuda\w*ErrorMemoryAllocation"
        r"|\bOutOfMemoryError:",
        "the GPU's memory does not hold the model and its work: raise need.min_vram_gib or need.gpu_count, choose a"
        " quantized model, or lower --max-num-seqs or --gpu-memory-utilization in model.vllm_args",
    ),
    _rule(
        "no_kv_cache_room",
        r"GiB KV cache is needed, which is larger than the available KV cache memory"
        r".*estimated maximum model length is (?P<said>\d+)",
        "beside the model the GPU's memory has no room for that much context: set model.max_model_len to {said} or"
        " less, or raise need.min_vram_gib",
    ),  # v1/core/kv_cache_utils.py
    _rule(
        "no_kv_cache_room",
        r"No available memory for the cache blocks|GiB KV cache is needed, which is larger than the available",
        "beside the model the GPU's memory has no room for its context: raise need.min_vram_gib or need.gpu_count,"
        " choose a quantized model, or lower model.max_model_len",
    ),
    _rule(
        "context_too_long",
        r"User-specified max_model_len \(\d+\) is greater than the derived max_model_len \((?:\w+=)?(?P<said>\d+)",
        "the model has a context of {said} tokens: lower model.max_model_len",
    ),  # config/model.py
    _rule(
        "gpu_too_old",
        r"no kernel image is available for execution on the device|is not supported for the current GPU\. Minimum"
        r"|is only supported on GPUs with compute capability|requires? (?:a )?compute capability",
        "this GPU cannot do what the model or the image asks for: name others in need.gpus, or choose another"
        " quantization",
    ),  # config/vllm.py
    _rule(
        "gpu_not_usable",
        r"CUDA driver version is insufficient|driver on your system is too old|PTX was compiled with an unsupported"
        r"|[Nn]o CUDA-capable device|No CUDA GPUs are available|Failed to infer device type"
        r"|NVMLError|Can't initialize NVML|Failed to initialize NVML|NVML_ERROR"
        r"|CUDA error: (?:unknown|initialization|system|invalid device ordinal|all CUDA-capable|.*uncorrectable|.*ECC)"
        r"|CUDA unknown error|GPU is lost|fallen off the bus",
        "GPU or driver of this machine cannot be used: another machine may do",
    ),
    _rule(
        "gpu_error",
        r"CUDA error: (?P<said>[a-z][^\n]*)",
        "the GPU stopped with `{said}`: started anew it may run; if not, another machine or image may do",
    ),
    _rule(
        "foreign_code",
        r"custom code (?:contained in|which must be executed)|`trust_remote_code=True`",
        "the model brings code of its own, which no machine runs: choose one that vLLM knows by itself",
    ),  # transformers_utils/config.py
    _rule(
        "unsupported_architecture",
        r"Model architectures (?P<said>\[[^]]*\]) (?:failed to be inspected|are not supported for now)",
        "vLLM of this image does not know the architecture {said}: choose another model, or a newer image",
    ),  # model_executor/models/registry.py
    _rule(
        "unsupported_architecture",
        r"model type (?P<said>`[^`]*`) but Transformers does not recognize this architecture"
        r"|Model architecture (?P<former>\S+) (?:is not supported in-tree|was supported in vLLM until)"
        r"|No model architectures are specified",
        "vLLM of this image does not know the model's architecture {said}: choose another model, or a newer image",
    ),
    _rule(
        "disk_full",
        r"No space left on device|Disk quota exceeded",
        "the machine's disk is full: raise need.disk_gb",
    ),
    _rule(
        "missing_file",
        r"Cannot find any model weights with|Error while deserializing|SafetensorError"
        r"|Couldn't instantiate the backend tokenizer|Invalid repository ID or local directory"
        r"|Repo id must be in the form|does not appear to have a file named (?P<said>\S+\w)"
        r"|FileNotFoundError: .*No such file or directory: (?P<path>\S+)",
        "a file of the release is missing or broken ({said}): push the model again, with its tokenizer and its weights",
    ),  # model_executor/model_loader/default_loader.py, transformers
    _rule(
        "bad_argument",
        r"attention heads \(\d+\) must be divisible by tensor parallel size \((?P<said>\d+)\)",
        "the model cannot be divided among {said} GPUs: set need.gpu_count to another number",
    ),  # config/model.py
    _rule(
        "out_of_host_memory",
        r"Failed core proc\(s\): \{.*: -9\b|\(exit code: -9\)|died with exit code -9|Cannot allocate memory"
        r"|\bMemoryError\b|DefaultCPUAllocator: (?:can't allocate|not enough) memory|Bus error"
        r"|is less than desired CPU memory utilization",
        "the memory of the machine itself was used up: choose a smaller model, or another machine",
    ),  # v1/engine/utils.py, v1/executor/multiproc_executor.py
    _rule(
        "address_in_use",
        r"[Aa]ddress already in use",
        "a former engine has not ended and holds its socket: started anew it should run",
    ),
    _rule(
        "bad_argument",
        r"error: (?P<said>(?:unrecognized arguments|argument |ambiguous option|the following arguments).*)"
        r"|Value error, (?P<value>.*?)(?: \[type=|$)",
        "vLLM refuses what it was given ({said}): mend model.vllm_args",
    ),
    _rule(
        "broken_image",
        r"(?P<said>(?:ModuleNotFoundError|ImportError): .*)|undefined symbol|cannot open shared object file",
        "the image lacks something ({said}): choose another image",
    ),
    _rule(
        "engine_hung",
        r"RPC call to \w+ timed out|TimeoutError: .*(?:execute_model|sample_tokens)",
        "the GPU did not answer in time: started anew it may run; if not, another machine may do",
    ),
    _rule(
        "engine_died",
        r"EngineDeadError|EngineCore encountered an issue|died unexpectedly|Engine core initialization failed",
        "vLLM's engine ended without saying why, as one does that was killed; gpu_host_memory_oom_kills_total tells"
        " whether the machine's own memory was used up",
    ),
)

NAMES = frozenset({UNKNOWN, *(rule.name for rule in _RULES)})
"""Every name that a reason can have."""

_AT_START = frozenset(
    {"bad_argument", "context_too_long", "foreign_code", "missing_file", "no_kv_cache_room", "unsupported_architecture"}
)
"""What only an engine that has not served yet can end of. Later such words are about a client's request."""

_SERVED = re.compile(r"Application startup complete|Avg prompt throughput|\"(?:GET|POST) /")
_CHATTER = re.compile(r"^(?:\([^)]*\) )?(?:INFO|WARNING|DEBUG)(?: \d\d-\d\d |:)")
_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b.*:|\berror: ")


def explain(lines: Sequence[str]) -> Reason:
    """Return why the process ended that printed *lines*.

    What vLLM says in passing does not count: it repeats its arguments, and warns of what then does not happen.
    """
    told = [line for line in lines if line.strip() and not _CHATTER.match(line)]
    has_served = any(_SERVED.search(line) for line in lines)
    for rule in _RULES:
        for line in told if not (has_served and rule.name in _AT_START) else ():
            found = rule.pattern.search(line)
            if found:
                return Reason(rule.name, _fill(rule.message, found))
    return Reason(UNKNOWN, _last_words(told or [line for line in lines if line.strip()]))


def _fill(message: str, found: re.Match[str]) -> str:
    said = _shorten(next((text for text in found.groups() if text), ""))
    # Where the log says nothing more, nothing is left of the place for it.
    return message.replace("{said}", said) if said else re.sub(r" \(?\{said\}\)?", "", message)


def _last_words(lines: Sequence[str]) -> str:
    if not lines:
        return "it ended without a word"
    last = next((line for line in reversed(lines) if _ERROR.search(line)), lines[-1])
    return f"its last words: {_shorten(last)}"


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SAID_CHARACTERS else f"{text[:_SAID_CHARACTERS]}…"
