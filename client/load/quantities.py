"""What servers and exporters tell of themselves: vLLM, node_exporter, and exporters of NVIDIA's and AMD's GPUs.

Who answers is recognised by the names of the series. Sources: vLLM's "Production Metrics"; node_exporter 1.5;
dcgm-exporter's default-counters.csv; nvidia_gpu_exporter's METRICS.md; AMD device-metrics-exporter's metricslist.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from client.load.exposition import Samples, pattern_of, samples_in

_MIB = 2.0**20
# DCGM's marks for what it does not know: 2**47 for fractions, near 2**63 for whole numbers. Counters may pass 2**47.
_BLANK_GAUGE, _BLANK_COUNTER = 2.0**47, 2.0**62
_GPU = re.compile(rb'\b(?:UUID|uuid|gpu_id)="([^"]*)"')
_GPU_PART = re.compile(rb'\b(?:UUID|uuid|gpu_id|GPU_I_ID|partition_id)="([^"]*)"')
_IDLE = re.compile(rb'mode="idle"')
# Traffic over a bridge, a bond or a VLAN is its interfaces' traffic.
_INTERFACE = re.compile(
    rb'device="(?!lo"|veth|docker|br|virbr|ifb|tap|tun|cni|cali|flannel|bond|team|dummy|vxlan)[^".]*"'
)


@dataclass(frozen=True)
class Quantity:
    """A value over time.

    Attributes:
        series: Names that it may have, the best first, and the factor that gives the quantity's unit.
        fold: Makes one value of those of all devices.
        device: Finds what tells devices apart: one that is told once for each pod on it counts once. None: each line
            is a device.
        only: Finds what labels must have.
        from_rate: Makes the quantity of a counter's change per second; None for a gauge.
    """

    series: Mapping[str, float]
    fold: Callable[[Sequence[float]], float] = sum
    device: re.Pattern[bytes] | None = None
    only: re.Pattern[bytes] | None = None
    from_rate: Callable[[float], float] | None = None

    def read(self, samples: Samples) -> float | None:
        """Return the value at this moment, a counter's as it stands; None where it is not told."""
        name = next((name for name in self.series if name in samples), "")
        blank = _BLANK_GAUGE if self.from_rate is None else _BLANK_COUNTER
        devices: dict[object, float] = {}
        for place, (labels, value) in enumerate(samples.get(name, ())):
            if value < blank and (self.only is None or self.only.search(labels)):
                device = (tuple(self.device.findall(labels)) if self.device is not None else ()) or place
                devices[device] = max(value, devices.get(device, value))
        return self.fold(list(devices.values())) * self.series[name] if devices else None


# Shares are of 1. Sums and means are over all devices that an exporter shows, whoever uses them.
QUANTITIES: Mapping[str, Quantity] = {
    "requests_running": Quantity({"vllm:num_requests_running": 1}),
    "requests_waiting": Quantity({"vllm:num_requests_waiting": 1}),
    "kv_cache_usage": Quantity({"vllm:kv_cache_usage_perc": 1, "vllm:gpu_cache_usage_perc": 1}, fmean),
    "cpu_busy_share": Quantity(
        {"node_cpu_seconds_total": 1}, fmean, only=_IDLE, from_rate=lambda idle: max(0.0, 1 - idle)
    ),
    "load_1min": Quantity({"node_load1": 1}),
    "memory_available_bytes": Quantity({"node_memory_MemAvailable_bytes": 1}),
    "network_received_bytes_per_s": Quantity({"node_network_receive_bytes_total": 1}, only=_INTERFACE, from_rate=float),
    "network_sent_bytes_per_s": Quantity({"node_network_transmit_bytes_total": 1}, only=_INTERFACE, from_rate=float),
    "gpu_busy_share": Quantity(
        {"DCGM_FI_DEV_GPU_UTIL": 0.01, "nvidia_smi_utilization_gpu_ratio": 1, "gpu_gfx_activity": 0.01}, fmean, _GPU
    ),
    "gpu_memory_used_bytes": Quantity(
        {"DCGM_FI_DEV_FB_USED": _MIB, "nvidia_smi_memory_used_bytes": 1, "gpu_used_vram": _MIB}, sum, _GPU_PART
    ),
    "gpu_power_w": Quantity(
        {
            "DCGM_FI_DEV_POWER_USAGE": 1,
            "nvidia_smi_power_draw_watts": 1,
            "gpu_package_power": 1,
            "gpu_power_usage": 1,
            "gpu_average_package_power": 1,
        },
        sum,
        _GPU,
    ),
}
GPU_ENERGY_J = Quantity(
    {
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 1e-3,
        "nvidia_smi_energy_joules_total": 1,
        "gpu_energy_consumed": 1e-6,
    },
    sum,
    _GPU,
    from_rate=float,
)
_FOLLOWED = {**QUANTITIES, "gpu_energy_j": GPU_ENERGY_J}
# vLLM's own totals, of which the change over the load is told.
COUNTERS = {
    "preemptions": ("vllm:num_preemptions_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "prefix_cache_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
}
HISTOGRAMS = {
    "ttft_s": "vllm:time_to_first_token_seconds",
    "queue_time_s": "vllm:request_queue_time_seconds",
    "e2e_s": "vllm:e2e_request_latency_seconds",
}
_TOTALS = [name for names in COUNTERS.values() for name in names] + [
    f"{name}_{part}" for name in HISTOGRAMS.values() for part in ("bucket", "count", "sum")
]
_BOUND = re.compile(rb'\ble="([^"]*)"')
_WANTED = pattern_of([name for quantity in _FOLLOWED.values() for name in quantity.series] + _TOTALS)


class Reading(NamedTuple):
    """What one look shows.

    Attributes:
        now: QUANTITIES and ``gpu_energy_j`` by name; those from counters as the counters stand.
        totals: Sums over labels by the series' names; a bucket's name is followed by its upper bound.
    """

    now: dict[str, float]
    totals: dict[str, float]


def read(text: bytes) -> Reading | None:
    """Return what ``text`` tells, None where it tells nothing that is known here.

    Raises:
        ValueError: a value is no number.
    """
    samples = samples_in(text, _WANTED)
    now = {name: value for name, quantity in _FOLLOWED.items() if (value := quantity.read(samples)) is not None}
    totals: dict[str, float] = {}
    for name in _TOTALS:
        for labels, value in samples.get(name, ()):
            bound = _BOUND.search(labels)
            key = name if bound is None else f"{name} {bound[1].decode()}"
            totals[key] = totals.get(key, 0.0) + value
    return Reading(now, totals) if now or totals else None
