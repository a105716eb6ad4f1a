"""What the encoding of latents costs beside the codec itself: reading, checks, checksums, writing.

    python benchmarks/encoding.py [--images 2048] [--size 32]

Baseline: the bare forward pass of the codec's encoder over the same images, in the same batches, same threads. The two
alternate; ratios are medians.

    python benchmarks/encoding.py --spread 2

compares two ways to spread the same shards over so many workers, each in a process of its own: Ray Train, as the stage
does, and Ray Data (`map` with a pool of actors). Seconds are from the call to the last shard, start-up included.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec
from ayf_core.data.sets.base import DataSet, Split
from ayf_core.training.context import LocalContext, TrainingContext
from pipelines.execution.own_ray import OwnRay, prepare_environment
from pipelines.execution.ray_train import run_training
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages.encode_latents import BATCH, encode_shard, shards_of

SHARD = 512


def images(count: int, size: int) -> DataSet:
    """Noise in the shape of images: what it is does not matter for how long it takes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((count, 3, size, size), generator=generator) * 2 - 1
    split = Split(x, torch.arange(count) % 10)
    return DataSet(split, Split(x[:16], torch.arange(16) % 10), 10)


def new_codec() -> AutoencoderKLCodec:
    """Small, with random weights."""
    return AutoencoderKLCodec.create(
        image_channels=3,
        latent_channels=4,
        channels=[32, 64],
        layers_per_block=1,
        norm_num_groups=8,
        kl_weight=1e-4,
    )


def bare(codec: AutoencoderKLCodec, dataset: DataSet, device: torch.device) -> float:
    """Seconds of the encoder alone."""
    began = time.perf_counter()
    for x in dataset.train.x.split(BATCH):
        codec.encode(x.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def sharded(codec: AutoencoderKLCodec, dataset: DataSet, folder: Path, device: torch.device) -> float:
    """Seconds of the stage's own work on the same images."""
    shutil.rmtree(folder, ignore_errors=True)
    context = LocalContext(folder, device)
    began = time.perf_counter()
    for shard in shards_of(dataset, SHARD):
        if shard.split == "train":
            encode_shard(shard, codec, dataset, context)
    return time.perf_counter() - began


class Encoder:
    """What Ray Data keeps in each of its actors."""

    def __init__(self, folder: str, count: int, size: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.codec, self.dataset, self.context = new_codec().eval(), images(count, size), LocalContext(folder)

    def __call__(self, row: dict) -> dict:
        encode_shard(shards_of(self.dataset, SHARD)[row["item"]], self.codec, self.dataset, self.context)
        return row


def train_encode(settings: dict, context: TrainingContext) -> dict:
    """The same as a training function, in the turns of the stage."""
    torch.manual_seed(0)
    codec, dataset = new_codec().eval(), images(settings["count"], settings["size"])
    shards = shards_of(dataset, SHARD)
    for shard in shards[context.rank :: context.world_size]:
        encode_shard(shard, codec, dataset, context)
    return {"shards": len(shards)}


def spread(way: str, workers: int, count: int, size: int) -> float:
    """Seconds from the call to the last shard."""
    runtime = RuntimeConfig(mode="ray", workers=workers, threads_per_worker=1, device="cpu")
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        if way == "train":
            settings = {"count": count, "size": size}
            run_training(
                train_encode, settings, folder=Path(place), name=way, runtime=runtime, on_log=lambda records: None
            )
        else:
            prepare_environment()
            with OwnRay(workers + 1):  # Ray Data reads in a process beside the pool
                import ray.data

                items = ray.data.from_items(list(range(len(shards_of(images(count, size), SHARD)))))
                pool = ray.data.ActorPoolStrategy(size=workers)
                items.repartition(workers * 2).map(
                    Encoder, fn_constructor_args=(place, count, size), compute=pool
                ).materialize()
        return time.perf_counter() - began


def compare_ways(workers: int, count: int, size: int, repeats: int) -> None:
    """Both ways in turn, each in a fresh process."""
    found: dict[str, list[float]] = {"train": [], "data": []}
    for _ in range(repeats):
        for way, seconds in found.items():
            command = [sys.executable, __file__, "--way", way, "--spread", str(workers)]
            command += ["--images", str(count), "--size", str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout.splitlines()[-1]))
    train, data = (statistics.median(seconds) for seconds in found.values())
    print(f"{count} images over {workers} workers: Ray Train {train:.1f} s, Ray Data {data:.1f} s")
    print(f"Ray Data / Ray Train: {data / train:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--spread", type=int, help="workers, to compare Ray Train with Ray Data")
    parser.add_argument("--way", choices=("train", "data"), help="one run in this process; prints seconds")
    arguments = parser.parse_args()
    if arguments.way:
        print(spread(arguments.way, arguments.spread, arguments.images, arguments.size))
        return
    if arguments.spread:
        compare_ways(arguments.spread, arguments.images, arguments.size, arguments.repeats)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    codec = new_codec().to(device).eval()
    dataset = images(arguments.images, arguments.size)
    bare(codec, images(BATCH, arguments.size), device)
    ratios, rates = [], []
    with tempfile.TemporaryDirectory() as place:
        for _ in range(arguments.repeats):
            alone = bare(codec, dataset, device)
            whole = sharded(codec, dataset, Path(place) / "latents", device)
            ratios.append(whole / alone)
            rates.append(arguments.images / whole)
    print(f"{arguments.images} images of {arguments.size}x{arguments.size} on {device.type}, shards of {SHARD}")
    print(
        f"the stage's work / the codec's bare forward pass: {statistics.median(ratios):.3f} "
        f"[{min(ratios):.3f}, {max(ratios):.3f}]"
    )
    print(f"images a second: {statistics.median(rates):.0f}")


if __name__ == "__main__":
    main()
