"""The metric families of vLLM 0.32, by name: what kind, which labels, which buckets."""

from dataclasses import dataclass, field

_SECONDS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_HTTP_FINE = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75,
    1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One metric family.

    Args:
        kind: counter, gauge, histogram or summary.
        label: The one label that tells its series apart, beside the common ones; None for a single series.
        values: That label's values, which are all shown from the start, at zero.
        buckets: A histogram's upper bounds, without the infinite one.
        per_engine: Whether the series carry `engine`, as nearly all of vLLM's own do.
    """

    kind: str
    label: str | None = None
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=(), repr=False)
    per_engine: bool = True


def _vllm() -> dict[str, Family]:
    single_counters = """
        estimated_flops_per_gpu_total estimated_read_bytes_per_gpu_total estimated_write_bytes_per_gpu_total
        prefix_cache_queries_total prefix_cache_hits_total external_prefix_cache_queries_total
        external_prefix_cache_hits_total mm_cache_queries_total mm_cache_hits_total num_preemptions_total
        prompt_tokens_total prompt_tokens_cached_total generation_tokens_total
    """
    families = {name: Family("counter") for name in single_counters.split()}
    families |= {
        name: Family("gauge") for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    }
    for label, values, name, kind in (
        ("reason", "capacity deferred", "num_requests_waiting_by_reason", "gauge"),
        ("sleep_state", "awake weights_offloaded discard_all", "engine_sleep_state", "gauge"),
        ("source", "local_compute local_cache_hit external_kv_transfer", "prompt_tokens_by_source_total", "counter"),
        ("source", "device host p2p disk external_unspecified", "prompt_tokens_cached_by_source_total", "counter"),
        ("finished_reason", "stop length abort error repetition", "request_success_total", "counter"),
    ):
        families[name] = Family(kind, label, tuple(values.split()))
    families["admission_rejections_total"] = Family(
        "counter", "reason", ("max_num_queued_reqs", "max_num_queued_tokens"), per_engine=False
    )
    for buckets, names in (
        (_TOKENS, "request_prompt_tokens request_generation_tokens request_max_num_generation_tokens"),
        (_TOKENS, "request_params_max_tokens request_prefill_kv_computed_tokens"),
        (_STEP, "iteration_tokens_total"),
        (_TOKENS[:5], "request_params_n"),
        ((1, 2, 3, 4, 5, 10, 20), "request_num_preemptions"),
        (_FIRST_TOKEN, "time_to_first_token_seconds"),
        (_BETWEEN, "inter_token_latency_seconds request_time_per_output_token_seconds"),
        (_SECONDS, "e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds"),
        (_SECONDS, "request_prefill_time_seconds request_decode_time_seconds"),
    ):
        families |= {name: Family("histogram", buckets=buckets) for name in names.split()}
    return families


VLLM = {f"vllm:{name}": family for name, family in _vllm().items()}
HTTP = {
    "http_requests_total": Family("counter"),
    "http_request_size_bytes": Family("summary"),
    "http_response_size_bytes": Family("summary"),
    "http_request_duration_highr_seconds": Family("histogram", buckets=_HTTP_FINE),
    "http_request_duration_seconds": Family("histogram", buckets=(0.1, 0.5, 1)),
}
