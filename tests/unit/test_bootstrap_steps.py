"""What is asked of a machine, and what is refused."""

from dataclasses import replace

import pytest

from bootstrap.steps import (
    Engine,
    Gpu,
    Identity,
    ModelFile,
    parse_gpus,
    redact,
    render_progress,
    telling_lines,
)
from dynamic_providers.lease.monitoring import WriteTarget

ENGINE = Engine("tiny@sha256:" + "ab" * 32, "tiny", (ModelFile("config.json", 2, "cd" * 32),))


@pytest.mark.parametrize(
    "change",
    [
        {"release": "tiny@sha256:" + "ba" * 32},
        {"served_name": "other"},
        {"vllm_args": ("--enforce-eager",)},
        {"max_model_len": 4096},
        {"gpu_count": 2},
        {"clients": ("default", "second")},
        {"startup_cache": True},
        {"monitoring": WriteTarget("https://metrics.example.org/api/v1/write")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_counts_in_the_hash(change: dict[str, object]) -> None:
    assert replace(ENGINE, **change).settings_hash() != ENGINE.settings_hash()  # type: ignore[arg-type]


def test_the_hash_needs_no_manifest() -> None:
    assert replace(ENGINE, files=()).settings_hash() == ENGINE.settings_hash()


@pytest.mark.parametrize("path", ["/etc/passwd", "../key.pem", "a/../../b"])
def test_a_file_may_not_leave_its_models_folder(path: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        ModelFile(path, 1, "ab" * 32)


def test_a_repr_tells_no_secret() -> None:
    identity = Identity("7", "certificate", "the-key", {"default": "token-a"}, "token-b", "token-c")
    assert not [secret for secret in identity.secrets() if secret in repr(identity)]


def test_gpus_are_read_as_the_driver_prints_them() -> None:
    assert parse_gpus("NVIDIA GeForce RTX 4090, 24564\n\nA, B, 1\n") == (
        Gpu("NVIDIA GeForce RTX 4090", 24564),
        Gpu("A, B", 1),
    )
    with pytest.raises(ValueError, match="invalid literal"):
        parse_gpus("NVIDIA-SMI has failed")


def test_secrets_and_signatures_are_blotted_out() -> None:
    text = "token-a at https://store/bucket/blob?X-Amz-Signature=abc&x=1 and http://plain/ token-a"
    assert redact(text, ["token-a", ""]) == "*** at https://store/bucket/blob?*** and http://plain/ ***"


@pytest.mark.parametrize(
    "said",
    [
        "URL can't contain control characters. '/bucket/a?X-Amz-Credential=k&X-Amz-Signature=abc' (found at least ' ')",
        "GET /bucket/a?AWSAccessKeyId=k&Signature=abc%3D&Expires=1 HTTP/1.1",
        "HTTPSConnectionPool(host='store', port=443): Max retries exceeded with url: /a?x=1&X-Amz-Signature=abc",
        "{'X-Amz-Signature=abc'}",
    ],
)
def test_of_a_url_in_pieces_nothing_that_signs_is_left(said: str) -> None:
    left = redact(said, ())
    assert "abc" not in left
    assert "=k" not in left


def test_what_is_compiled_is_the_same_for_whoever_asks_under_whatever_name() -> None:
    same = replace(ENGINE, served_name="other", clients=("a", "b"), files=(), startup_cache=True)
    assert same.compile_hash() == ENGINE.compile_hash()
    changes = ({"release": "tiny@sha256:" + "ba" * 32}, {"vllm_args": ("-x",)}, {"max_model_len": 1}, {"gpu_count": 2})
    hashes = {replace(ENGINE, **change).compile_hash() for change in changes}
    assert len(hashes | {ENGINE.compile_hash()}) == len(changes) + 1


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        pytest.param((1.2e9, 16.1e9, 410e6), "█░░░░░░░░░░░░░░░░░░░ 1.2 of 16.1 GB, 410 MB/s, 36 s left", id="large"),
        pytest.param((3e6, 52e6, 7e6), "█░░░░░░░░░░░░░░░░░░░ 3.0 of 52.0 MB, 7 MB/s, 7 s left", id="small"),
        pytest.param((0, 16.1e9, 0), "░░░░░░░░░░░░░░░░░░░░ 0.0 of 16.1 GB", id="stalled"),
        pytest.param(
            (16.1e9, 16.1e9, 1e9), "████████████████████ 16.1 of 16.1 GB, 1000 MB/s, 0 s left", id="all-there"
        ),
    ],
)
def test_progress_is_one_short_line(numbers: tuple[int, int, float], text: str) -> None:
    done, total, rate = numbers
    assert render_progress(int(done), int(total), rate) == text


def test_of_a_long_log_the_errors_and_the_end_are_told() -> None:
    cause = "(EngineCore) ValueError: max_model_len is greater than the model allows"
    log = [
        "INFO loading",
        cause,
        *(f'  File "{n}.py", line {n}, in f' for n in range(50)),
        cause,
        "RuntimeError: failed",
    ]
    told = telling_lines(log)
    assert told[0] == cause
    assert told[-2:] == [cause, "RuntimeError: failed"]
    assert len(told) == 9
    assert telling_lines(["vllm: error: unrecognized arguments: --x"]) == ["vllm: error: unrecognized arguments: --x"]
    assert telling_lines([]) == []
