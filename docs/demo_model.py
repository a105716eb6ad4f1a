"""Packs the finished student of a run of preset digits into pipelines/demo, for `ayf demo`.

    make repro
    python docs/demo_model.py [--project FOLDER]

Weights in half precision, no averages: what sampling needs and nothing else. `provenance.json` says where it is from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import yaml

from ayf_core.data.codecs.files import CODEC_FILE, load_codec
from ayf_core.networks.files import load_network, save_network

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "pipelines" / "demo"
KEPT = ("ema_std", "guidance_range", "latent_space", "objective")
"""What of model.json tells how to sample."""


def pack(project: Path) -> None:
    source, target = project / "models" / "adversarial", DEMO / "model"
    shutil.rmtree(target, ignore_errors=True)
    network, card = load_network(source)
    weights = {name: tensor.half() for name, tensor in network.state_dict().items()}
    save_network(target, network, weights, role=card["role"], **{name: card[name] for name in KEPT})
    codec = load_codec(source / "codec").half()
    codec.save(target / "codec")
    card = target / "codec" / CODEC_FILE
    # The fingerprint is that of the weights as they are read, which is in single precision.
    content = json.loads(card.read_text()) | {"fingerprint": codec.float().fingerprint}
    card.write_text(json.dumps(content, indent=2) + "\n")
    (DEMO / "provenance.json").write_text(json.dumps(provenance(project, source), indent=2) + "\n")


def provenance(project: Path, source: Path) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["finetune_adversarial"]
    return {
        "made_by": "dvc repro finetune_adversarial, then docs/demo_model.py: weights in half precision",
        "preset": "digits",
        "commit": commit.stdout.strip(),
        "source_sha256": hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest(),
        "outputs": {out["path"]: out["md5"] for out in lock["outs"]},
        "data": "UCI ML hand-written digits, as scikit-learn ships them (CC BY 4.0)",
        "licence": "Apache-2.0, as this project",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=ROOT, help="the clone in which it ran")
    pack(parser.parse_args().project)
