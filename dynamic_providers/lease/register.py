"""The register of metrics that leave a machine: name, type, unit, labels, and who emits it.

Dashboards, alerts and tests are held to it; `docs/metrics.md` is it, rendered. Of vLLM it holds what a model of text
without further arguments shows; what others add is pushed as it is.
"""

from collections.abc import Iterator, Mapping

from dynamic_providers.lease.metrics import AGENT_METRICS, Emitter, Kind, Metric

PUSH_LABELS = ("stack", "model", "instance_id", "machine_id", "uid")
"""What vmagent adds to everything that it pushes; `job` and `instance`, as every scrape has them, stand beside them."""

_ENGINE_LABELS = ("engine", "model_name")


def _vllm(name: str, kind: Kind, unit: str, about: str, *labels: str) -> Metric:
    return Metric(f"vllm:{name}", kind, unit, about, (*_ENGINE_LABELS, *labels), Emitter.VLLM)


def _gauge(name: str, unit: str, about: str, *labels: str) -> Metric:
    return _vllm(name, Kind.GAUGE, unit, about, *labels)


def _counter(name: str, unit: str, about: str, *labels: str) -> Metric:
    return _vllm(f"{name}_total", Kind.COUNTER, unit, about, *labels)


def _histogram(name: str, unit: str, about: str) -> Metric:
    return _vllm(name, Kind.HISTOGRAM, unit, about)


# Source: the page of vLLM 0.32, as it was recorded from the CPU build with a model of text and no further arguments.
_VLLM = (
    _gauge("num_requests_running", "", "Requests in a batch"),
    _gauge("num_requests_waiting", "", "Requests that wait for one"),
    _gauge("num_requests_waiting_by_reason", "", "The same, by why they wait", "reason"),
    _gauge("engine_sleep_state", "", "1 for the state that the engine sleeps in, or `awake`", "sleep_state"),
    _gauge("kv_cache_usage_perc", "ratio", "Part of the KV cache that is in use"),
    _counter("prefix_cache_queries", "tokens", "Tokens that were looked up in the prefix cache"),
    _counter("prefix_cache_hits", "tokens", "Tokens that were found there"),
    _counter("external_prefix_cache_queries", "tokens", "The same for a cache outside of the engine"),
    _counter("external_prefix_cache_hits", "tokens", "The same for a cache outside of the engine"),
    _counter("mm_cache_queries", "", "Pictures and the like that were looked up"),
    _counter("mm_cache_hits", "", "Pictures and the like that were found"),
    _counter("num_preemptions", "", "Requests that were put back because the KV cache was full"),
    _counter("prompt_tokens", "tokens", "Tokens of prompts"),
    _counter("prompt_tokens_by_source", "tokens", "The same, by where they came from", "source"),
    _counter("prompt_tokens_cached", "tokens", "Tokens of prompts that were cached"),
    _counter("prompt_tokens_cached_by_source", "tokens", "The same, by the cache", "source"),
    _counter("generation_tokens", "tokens", "Tokens that were generated"),
    _counter(
        "request_success", "", "Requests that were finished; one that its client breaks off is not", "finished_reason"
    ),
    Metric(
        "vllm:admission_rejections_total",
        Kind.COUNTER,
        "",
        "Requests that the engine would not take",
        ("model_name", "reason"),
        Emitter.VLLM,
    ),
    _counter("estimated_flops_per_gpu", "operations", "Floating point operations, estimated"),
    _counter("estimated_read_bytes_per_gpu", "bytes", "Read from the GPU's memory, estimated"),
    _counter("estimated_write_bytes_per_gpu", "bytes", "Written to it, estimated"),
    _histogram("time_to_first_token_seconds", "seconds", "From a request's arrival to its first token"),
    _histogram("inter_token_latency_seconds", "seconds", "Between two tokens"),
    _histogram("request_time_per_output_token_seconds", "seconds", "The same, a request's mean"),
    _histogram("e2e_request_latency_seconds", "seconds", "From a request's arrival to its end"),
    _histogram("request_queue_time_seconds", "seconds", "Of that, waiting"),
    _histogram("request_inference_time_seconds", "seconds", "Of that, computing"),
    _histogram("request_prefill_time_seconds", "seconds", "Of that, reading the prompt"),
    _histogram("request_decode_time_seconds", "seconds", "Of that, generating"),
    _histogram("request_prompt_tokens", "tokens", "Tokens of a prompt"),
    _histogram("request_generation_tokens", "tokens", "Tokens of an answer"),
    _histogram("request_max_num_generation_tokens", "tokens", "The most tokens of an answer that was asked for"),
    _histogram("request_params_max_tokens", "tokens", "`max_tokens`, as asked for"),
    _histogram("request_params_n", "", "`n`, as asked for"),
    _histogram("request_prefill_kv_computed_tokens", "tokens", "Tokens of a prompt that were not cached"),
    _histogram("request_num_preemptions", "", "How often a request was put back"),
    _histogram("iteration_tokens_total", "tokens", "Tokens in a step of the engine; a histogram, whatever its name"),
)


def _http(name: str, kind: Kind, unit: str, about: str, *labels: str) -> Metric:
    return Metric(f"http_{name}", kind, unit, about, labels, Emitter.VLLM)


def _process(name: str, kind: Kind, unit: str, about: str) -> Metric:
    return Metric(f"process_{name}", kind, unit, about, (), Emitter.VLLM)


def _python(name: str, kind: Kind, about: str, *labels: str) -> Metric:
    return Metric(f"python_{name}", kind, "", about, labels, Emitter.VLLM)


# Those of HTTP show once something was asked.
_VLLM_SERVER = (
    _http("requests_total", Kind.COUNTER, "", "Requests to vLLM's own server", "handler", "method", "status"),
    _http("request_duration_seconds", Kind.HISTOGRAM, "seconds", "How long they took", "handler", "method"),
    _http("request_duration_highr_seconds", Kind.HISTOGRAM, "seconds", "The same, all together and in finer steps"),
    _http("request_size_bytes", Kind.SUMMARY, "bytes", "How long they were", "handler"),
    _http("response_size_bytes", Kind.SUMMARY, "bytes", "How long their answers were", "handler"),
    _process("start_time_seconds", Kind.GAUGE, "seconds", "When vLLM's server was started, unix time"),
    _process("cpu_seconds_total", Kind.COUNTER, "seconds", "CPU time of vLLM's server, without its engine"),
    _process("resident_memory_bytes", Kind.GAUGE, "bytes", "Memory of vLLM's server, without its engine"),
    _process("virtual_memory_bytes", Kind.GAUGE, "bytes", "Addresses that it has taken"),
    _process("open_fds", Kind.GAUGE, "", "Files that it has open"),
    _process("max_fds", Kind.GAUGE, "", "Files that it may have open"),
    _python("gc_collections_total", Kind.COUNTER, "How often its garbage was collected", "generation"),
    _python("gc_objects_collected_total", Kind.COUNTER, "What was collected", "generation"),
    _python("gc_objects_uncollectable_total", Kind.COUNTER, "What could not be", "generation"),
    _python("info", Kind.GAUGE, "Its Python", "implementation", "major", "minor", "patchlevel", "version"),
)


def _scrape(name: str, unit: str, about: str) -> Metric:
    return Metric(name, Kind.GAUGE, unit, about, (), Emitter.VMAGENT)


# Source: the strings of vmagent 1.79.5; what limits would add is not asked for.
_SCRAPE = (
    _scrape("up", "", "1 if the page could be read"),
    _scrape("scrape_duration_seconds", "seconds", "How long that took"),
    _scrape("scrape_samples_scraped", "", "Samples on the page"),
    _scrape("scrape_samples_post_metric_relabeling", "", "Samples of it that are pushed"),
    _scrape("scrape_series_added", "", "Series on the page that were not there before"),
    _scrape("scrape_timeout_seconds", "seconds", "How long it may take"),
    _scrape("scrape_response_size_bytes", "bytes", "Size of the page"),
)

REGISTER: Mapping[str, Metric] = {
    **AGENT_METRICS,
    **{metric.name: metric for metric in (*_VLLM, *_VLLM_SERVER, *_SCRAPE)},
}
"""Every metric by name."""

NOT_PUSHED = ("vllm:cache_config_info",)
"""On vLLM's page and of no use elsewhere: dozens of settings as labels. So are all series that end in `_created`."""


def series_names(metric: Metric) -> frozenset[str]:
    """Return the names of the series that a metric is made of."""
    parts = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.SUMMARY: ("_sum", "_count")}.get(metric.kind, ("",))
    return frozenset(metric.name + part for part in parts)


def find_metric(series: str) -> Metric | None:
    """Return the metric that a series belongs to; None if there is none in the register."""
    for part in ("", "_bucket", "_sum", "_count"):
        metric = REGISTER.get(series.removesuffix(part)) if series.endswith(part) else None
        if metric and series in series_names(metric):
            return metric
    return None


_SECTIONS: Mapping[Emitter, str] = {
    Emitter.AGENT: "Of the agent: `/metrics/host`",
    Emitter.VLLM: "Of vLLM: `/metrics/vllm`",
    Emitter.VMAGENT: "Of vmagent, for each of the two pages",
}


def render_register() -> str:
    """Return the register as a document."""
    added = ", ".join(f"`{label}`" for label in PUSH_LABELS)
    return "\n".join(
        [
            "# Metrics",
            "",
            "What leaves a machine; vLLM adds to it under other models and arguments. This page is rendered from",
            "`dynamic_providers/lease/register.py`; a test compares the two.",
            "",
            f"What is pushed carries {added}, `job` and `instance` beside the labels below.",
            "A histogram has series that end in `_bucket`, `_sum` and `_count`. What is unknown is absent, never zero.",
            *(line for emitter, title in _SECTIONS.items() for line in _render_section(emitter, title)),
            "",
        ]
    )


def _render_section(emitter: Emitter, title: str) -> Iterator[str]:
    yield from ("", f"## {title}", "", "| metric | type | unit | labels | |", "| --- | --- | --- | --- | --- |")
    for metric in REGISTER.values():
        if metric.emitter is emitter:
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
            yield f"| `{metric.name}` | {metric.kind} | {metric.unit or '–'} | {labels} | {metric.help} |"
