"""The stack files that are shipped: the arithmetic in their comments is right, and what they ask for can be had."""

import re
from dataclasses import dataclass
from math import floor, prod
from pathlib import Path

import pytest

from dynamic_providers.vast.models import GPUS, VRAM_TOLERANCE, Offer
from dynamic_providers.vast.offers import Survey, survey_offers
from dynamic_providers.vast.request import WEIGHTS_SHARE, MachineRequest, ModelRequest, disk_for, misfits
from infra.settings import GpuSettings, parse_settings, read_stack_file
from tests.sandbox.vast.catalogue import GPU_KINDS
from tests.sandbox.vast.offers import OfferBoard
from tests.unit.builders import a_request

ROOT = Path(__file__).parents[2]
STACKS = {path.stem.removeprefix("Pulumi."): path for path in sorted((ROOT / "stacks").glob("Pulumi.gpu-*.yaml"))}
VLLM_SHARE = 0.92  # of a GPU's memory; source: vLLM 0.32, `--gpu-memory-utilization`
GIB = 2**30
NOW = 1_770_000_000.0

every_stack = pytest.mark.parametrize("stack", STACKS)


@dataclass(frozen=True)
class Arithmetic:
    """What a stack file's comment says of its model and its memory.

    Attributes:
        kv_factors: Layers, 2 (key and value), heads, size of a head, bytes of a number.
    """

    vram: str
    parameters: float
    bytes_per_weight: float
    weights_gib: float
    usable_gib: float
    working_gib: float
    left_gib: float
    tokens: int
    kv_kib: float
    kv_factors: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return round(self.parameters * self.bytes_per_weight)

    @property
    def kv_bytes(self) -> int:
        return prod(self.kv_factors)


_COMMENT = re.compile(
    r"Does it fit (?P<vram>[\d× ]+) GiB\? (?P<parameters>[\d.]+) billion parameters at (?P<bytes>[\d.]+) bytes: "
    r"(?P<weights>[\d.]+) GiB of weights\b.*? vLLM takes 92 % of the cards?, (?P<usable>[\d.]+) GiB, and about "
    r"(?P<working>[\d.]+) GiB of that to work in\. The (?P<left>[\d.]+) GiB left hold (?P<tokens>[\d,]+) tokens of "
    r"context at (?P<kib>[\d.]+) KiB each \((?P<factors>\d+ layers × 2 × \d+ heads × \d+ × \d bytes)\)"
)


def arithmetic_of(stack: str) -> Arithmetic:
    lines = STACKS[stack].read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    found = _COMMENT.search(comment)
    assert found, "the comment does not say why the model fits, in the words of the others"
    return Arithmetic(
        vram=found["vram"],
        parameters=float(found["parameters"]) * 1e9,
        bytes_per_weight=float(found["bytes"]),
        weights_gib=float(found["weights"]),
        usable_gib=float(found["usable"]),
        working_gib=float(found["working"]),
        left_gib=float(found["left"]),
        tokens=int(found["tokens"].replace(",", "")),
        kv_kib=float(found["kib"]),
        kv_factors=tuple(map(int, re.findall(r"\d+", found["factors"]))),
    )


def settings_of(stack: str) -> GpuSettings:
    return parse_settings(read_stack_file(STACKS[stack]))


def request_of(stack: str) -> MachineRequest:
    """Return what the stack asks of a machine once the real weights are in the bucket."""
    settings, size = settings_of(stack), arithmetic_of(stack).size_bytes
    model = settings.model
    asked = ModelRequest(
        f"{model.ref}@sha256:{'ab' * 32}", size, model.served_name, model.max_model_len, model.vllm_args, ("default",)
    )
    return a_request(stack=stack, need=settings.need, model=asked, terms=settings.lease)


def survey(stack: str, seed: int = 0) -> Survey:
    """Weigh a market's offers, priced with the disk that the stack rents."""
    plan = request_of(stack).plan
    board = OfferBoard(seed, NOW)
    return survey_offers([Offer.from_api(row) for row in board.rows(plan.need.disk_gb or 0, NOW)], plan)


def test_models_that_people_rent_for_are_there() -> None:
    settings = {stack: settings_of(stack) for stack in STACKS}
    assert len(STACKS) >= 6
    texts = {stack: path.read_text(encoding="utf-8") for stack, path in STACKS.items()}
    assert any("gated" in text and "licence" in text and "hf auth login" in text for text in texts.values())
    assert any(arithmetic_of(stack).bytes_per_weight < 1 for stack in STACKS), "quantised"
    assert any(s.need.min_vram_gib >= 80 and s.need.gpu_count == 1 for s in settings.values()), "80 GB"
    assert any("pooling" in s.model.vllm_args for s in settings.values()), "embeddings"


@every_stack
def test_the_comment_says_how_to_push_what_the_file_asks_for(stack: str) -> None:
    text = STACKS[stack].read_text(encoding="utf-8")
    pushed = re.search(
        r"hf download (\S+).* --local-dir (\S+)\n.*?gpu models push (\S+) --as (\S+) --stack (\S+)\n", text, re.S
    )
    assert pushed, "the comment does not say how the weights are fetched and pushed"
    repository, folder, source, name, pushed_for = pushed.groups()
    assert repository.rpartition("/")[2] == folder == source
    assert (name, pushed_for) == (settings_of(stack).model.ref, stack)
    assert ("gated" in text) == repository.startswith(("meta-llama/", "google/"))


@every_stack
def test_the_arithmetic_in_the_comment_adds_up(stack: str) -> None:
    said, need = arithmetic_of(stack), settings_of(stack).need
    gpus = f"{need.gpu_count} × " if need.gpu_count > 1 else ""
    assert said.vram == f"{gpus}{need.min_vram_gib:g}"
    # A hundredth of a billion weights is up to 0.02 GiB, a hundredth of a byte for each 0.3 GiB.
    assert said.size_bytes / GIB == pytest.approx(said.weights_gib, abs=0.06)
    assert need.gpu_count * need.min_vram_gib * VLLM_SHARE == pytest.approx(said.usable_gib, abs=0.06)
    assert said.usable_gib - said.weights_gib - said.working_gib == pytest.approx(said.left_gib, abs=0.11)
    assert said.kv_factors[1] == 2
    assert said.kv_bytes == said.kv_kib * 1024
    assert said.tokens == pytest.approx(said.left_gib * GIB / said.kv_bytes, rel=0.05)
    assert said.tokens <= said.left_gib * GIB / said.kv_bytes, "rounded up is a promise that is not kept"


@every_stack
def test_weights_and_one_full_request_fit_the_smallest_card_that_is_taken(stack: str) -> None:
    said, settings = arithmetic_of(stack), settings_of(stack)
    need, longest = settings.need, settings.model.max_model_len
    nominal = need.gpu_count * need.min_vram_gib * GIB
    assert said.parameters * said.bytes_per_weight <= WEIGHTS_SHARE * nominal
    assert longest is not None
    left = nominal * VRAM_TOLERANCE * VLLM_SHARE - said.size_bytes - said.working_gib * GIB
    assert floor(left / said.kv_bytes) >= longest
    assert misfits(request_of(stack)) == []


@every_stack
def test_the_disk_holds_the_image_and_the_weights(stack: str) -> None:
    request = request_of(stack)
    assert request.disk_gb >= disk_for(request.model.size_bytes) > request.model.size_bytes / 1e9 + 30


@every_stack
@pytest.mark.parametrize("seed", range(3))
def test_the_market_has_an_offer_for_it(stack: str, seed: int) -> None:
    assert survey(stack, seed).quotes


@every_stack
def test_no_gpu_is_named_in_vain(stack: str) -> None:
    """Each has the memory that is asked for, does the arithmetic, and can be had for that price."""
    need = settings_of(stack).need
    played = {kind.name: kind for kind in GPU_KINDS}
    for gpu in need.gpus:
        if kind := played.get(GPUS[gpu].vast):
            assert kind.memory_mib / 1024 >= need.min_vram_gib * VRAM_TOLERANCE, gpu
            assert kind.compute_cap >= 800, f"{gpu} has no bfloat16, and no kernels for AWQ"
            assert kind.usd_per_hour * need.gpu_count <= need.max_usd_per_hour, gpu
    assert any(GPUS[gpu].vast in played for gpu in need.gpus)


@every_stack
def test_the_price_allowed_is_near_the_price_asked(stack: str) -> None:
    """Room for a bad day on the market, not for somebody who asks twice as much as everybody else does."""
    need = settings_of(stack).need
    usual = [kind.usd_per_hour for kind in GPU_KINDS for gpu in need.gpus if kind.name == GPUS[gpu].vast]
    assert need.max_usd_per_hour <= 1.5 * max(usual) * need.gpu_count + 0.15  # the latter for disk
