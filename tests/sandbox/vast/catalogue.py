"""The GPUs and the places that the played market has to offer."""

from dataclasses import dataclass

from tests.sandbox.vast.hosts import Gpu


@dataclass(frozen=True)
class GpuKind:
    """One kind of GPU and what the market makes of it.

    Attributes:
        name: The market's `gpu_name`.
        driver: What `nvidia-smi` calls it.
        memory_mib: Memory of one, as both report it.
        compute_cap: Compute capability × 100.
        usd_per_hour: Usual price of one, GPU alone.
        bandwidth: Memory bandwidth, GB/s.
        tflops: Half-precision arithmetic, TFLOPS.
        watts: Power limit.
        machines: How many machines of the market have it.
        biggest: Most GPUs in one machine.
    """

    name: str
    driver: str
    memory_mib: int
    compute_cap: int
    usd_per_hour: float
    bandwidth: float
    tflops: float
    watts: int
    machines: int
    biggest: int = 8

    def to_gpu(self) -> Gpu:
        return Gpu(self.driver, self.memory_mib, self.compute_cap / 100)


GPU_KINDS = (
    GpuKind("RTX 4090", "NVIDIA GeForce RTX 4090", 24564, 890, 0.34, 1008, 82.6, 450, 34),
    GpuKind("RTX 3090", "NVIDIA GeForce RTX 3090", 24576, 860, 0.19, 936, 35.6, 350, 30),
    GpuKind("RTX 5090", "NVIDIA GeForce RTX 5090", 32607, 1200, 0.52, 1792, 104.8, 575, 16),
    GpuKind("RTX 4080", "NVIDIA GeForce RTX 4080", 16376, 890, 0.22, 717, 48.7, 320, 7, 4),
    GpuKind("RTX 3060", "NVIDIA GeForce RTX 3060", 12288, 860, 0.07, 360, 12.7, 170, 7, 4),
    GpuKind("RTX 4070S Ti", "NVIDIA GeForce RTX 4070 Ti SUPER", 16376, 890, 0.14, 672, 44.1, 285, 6, 2),
    GpuKind("RTX A4000", "NVIDIA RTX A4000", 16376, 860, 0.11, 448, 19.2, 140, 6, 4),
    GpuKind("RTX A5000", "NVIDIA RTX A5000", 24564, 860, 0.20, 768, 27.8, 230, 6, 4),
    GpuKind("RTX A6000", "NVIDIA RTX A6000", 49140, 860, 0.42, 768, 38.7, 300, 8),
    GpuKind("RTX 6000Ada", "NVIDIA RTX 6000 Ada Generation", 49140, 890, 0.68, 960, 91.1, 300, 7),
    GpuKind("Tesla T4", "Tesla T4", 15360, 750, 0.13, 320, 8.1, 70, 7, 4),
    GpuKind("L4", "NVIDIA L4", 23034, 890, 0.30, 300, 30.3, 72, 7),
    GpuKind("L40S", "NVIDIA L40S", 46068, 890, 0.72, 864, 91.6, 350, 8),
    GpuKind("A40", "NVIDIA A40", 46068, 860, 0.40, 696, 37.4, 300, 6),
    GpuKind("A100 PCIE", "NVIDIA A100 80GB PCIe", 81920, 800, 0.92, 1935, 78.0, 300, 7),
    GpuKind("A100 SXM4", "NVIDIA A100-SXM4-80GB", 81920, 800, 1.05, 2039, 78.0, 400, 8),
    GpuKind("H100 PCIE", "NVIDIA H100 PCIe", 81559, 900, 1.85, 2039, 204.9, 350, 6),
    GpuKind("H100 SXM", "NVIDIA H100 80GB HBM3", 81559, 900, 2.15, 3350, 267.6, 700, 8),
    GpuKind("H100 NVL", "NVIDIA H100 NVL", 95830, 900, 1.95, 3938, 241.3, 400, 6),
    GpuKind("H200", "NVIDIA H200", 143771, 900, 2.75, 4800, 267.6, 700, 7),
)

SMALLEST = next(kind for kind in GPU_KINDS if kind.name == "RTX 3060")
"""What a host that lies really has."""


@dataclass(frozen=True)
class Place:
    """A place as offers name it; some hosts give no city, and the text then begins with a comma."""

    geolocation: str
    weight: int


PLACES = (
    Place("Sweden, SE", 6),
    Place("Germany, DE", 7),
    Place("Czechia, CZ", 5),
    Place("Poland, PL", 5),
    Place("Norway, NO", 3),
    Place("France, FR", 4),
    Place("Netherlands, NL", 3),
    Place(", BG", 2),
    Place("California, US", 7),
    Place("Texas, US", 6),
    Place(", US", 4),
    Place("Quebec, CA", 4),
    Place("South Korea, KR", 4),
    Place("Japan, JP", 3),
    Place("Taiwan, TW", 4),
    Place("Vietnam, VN", 3),
    Place(", IN", 2),
    Place("Australia, AU", 2),
    Place("Ukraine, UA", 2),
)
IN_EUROPE = PLACES[:8]

# Driver -> highest CUDA that it runs. Source: the CUDA toolkit's release notes.
DRIVERS = (
    ("535.183.01", 12.2),
    ("550.127.08", 12.4),
    ("560.35.03", 12.6),
    ("570.86.15", 12.8),
    ("580.95.05", 13.0),
    ("590.44.01", 13.1),
)
CPUS = (
    ("AMD EPYC 7713 64-Core Processor", 128, 3.7),
    ("AMD EPYC 9554 64-Core Processor", 128, 3.8),
    ("Xeon® Gold 6230", 80, 3.9),
    ("AMD Ryzen 9 7950X 16-Core Processor", 32, 5.9),
    ("Core™ i7-13700K", 24, 5.3),
)
