"""The recordings that the front door is built on are still true of the pinned vLLM, and so is what was read in it."""

import json
import subprocess

import pytest

from bootstrap.door import ENGINE_IDLE
from tests.e2e import vllm_cpu
from tests.unit.test_door_routes import RECORDED

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


def in_vllm(*words: str) -> str:
    vllm_cpu.build()
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "HOME": str(vllm_cpu.HOME), "PATH": "/usr/bin:/bin"}
    command = [str(vllm_cpu.python()), *words]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_the_recorded_routes_are_those_of_the_pinned_vllm() -> None:
    assert json.loads(in_vllm(str(vllm_cpu.ROOT / "tests/e2e/vllm_routes.py"))) == json.loads(RECORDED.read_text())


def test_the_door_lets_go_of_a_connection_before_the_engine_does() -> None:
    seconds = in_vllm("-c", "from vllm import envs; print(envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE)").split()[-1]
    assert int(ENGINE_IDLE.removesuffix("s")) < int(seconds)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.jpg",
        "http://169.254.169.254/latest/meta-data",
        r"https://nowhere.invalid\@example.com/a.jpg",
        r"https://example.com\@nowhere.invalid/a.jpg",
        "https://nowhere.invalid@example.com/a.jpg",
        "file:///etc/passwd",
    ],
)
def test_no_media_is_fetched_from_anywhere(url: str) -> None:
    """CVE-2026-24779: with the only domain one that cannot exist, as the machine starts vLLM."""
    program = f"""
import socket
def resolve(host, *_, **__):
    if host != "nowhere.invalid":
        raise SystemExit(f"it asks for the address of {{host}}")
    raise socket.gaierror("there is none, and can be none")
def connect(*_): raise SystemExit("it connects")
socket.getaddrinfo, socket.socket.connect = resolve, connect
from vllm.multimodal.media import MediaConnector
try:
    MediaConnector(allowed_media_domains=["nowhere.invalid"]).fetch_image({url!r})
except Exception as error:
    print("refused:", type(error).__name__, error)
"""
    assert "refused: " in in_vllm("-c", program)


def test_a_request_cannot_ask_for_any_number_of_answers() -> None:
    """CVE-2026-34756."""
    program = """
from vllm.sampling_params import SamplingParams
try:
    SamplingParams(n=10**9)
except Exception as error:
    print("refused:", error)
"""
    assert "refused: " in in_vllm("-c", program)


def test_a_film_in_pieces_has_an_end() -> None:
    """CVE-2026-5497: unless the client says how many pictures it sends, so many are read and no more."""
    program = """
import base64, io
from PIL import Image
from vllm.multimodal.media import ImageMediaIO, VideoMediaIO
picture = io.BytesIO()
Image.new("RGB", (8, 8)).save(picture, "JPEG")
film = ",".join([base64.b64encode(picture.getvalue()).decode()] * 2000)
video = VideoMediaIO(ImageMediaIO())
read = video.load_base64("video/jpeg", film).media[0]
print("pictures:", len(read), "of 2000, at most", video.num_frames)
"""
    words = in_vllm("-c", program).split()
    assert int(words[words.index("pictures:") + 1]) < 200
