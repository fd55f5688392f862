"""HalluciNet in a training loop of your own: the pieces without the engine and its run folder.

    python examples/hallucinet.py TABLE [--teacher RUN] [--student NAME] [--epochs 20]

TABLE is a CSV (path,label,split) with the splits train and test. Without --teacher a small video network is trained
first, on the same training videos. Then a student that sees one frame is trained twice: with its hallucination branch
idle (weight 0), and hallucinating the teacher's feature.
"""

import argparse

import numpy as np
import torch

from stillmotion.config import MethodConfig, ModelConfig
from stillmotion.data.dataset import VideoDataset
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.table import Table, read_table
from stillmotion.methods import build_method
from stillmotion.methods.base import Method
from stillmotion.metrics import feature_means, hallucination_r2
from stillmotion.models.factory import create_model, load_model
from stillmotion.tasks import Classification
from stillmotion.view import Augment


def fit(method: Method, table: Table, *, epochs: int, lr: float = 1e-3) -> None:
    """Trains what is not frozen. The loader serves exactly the views that the method's networks ask for."""
    augment = Augment(min_area=0.5, flip=0.5)  # one box and one flip for all views of a sample
    dataset = VideoDataset(table, method.task, method.views(), augment=augment, random=True, short_side=128)
    batches = EpochBatches(len(dataset), batch_size=8)
    loader = make_loader(dataset, batches)
    optimiser = torch.optim.Adam((p for p in method.parameters() if p.requires_grad), lr=lr)
    method.train()
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in loader:
            optimiser.zero_grad()
            out = method(batch)
            out["loss"].backward()
            optimiser.step()
        parts = ", ".join(f"{name} {out[name].item():.4f}" for name in method.weights())
        print(f"  epoch {epoch}: {parts}")


@torch.no_grad()
def outputs(method: Method, table: Table) -> dict[str, np.ndarray]:
    """What the method gives for every readable sample, nothing random."""
    dataset = VideoDataset(table, method.task, method.views(), short_side=128)
    method.eval()
    loader = make_loader(dataset, EpochBatches(len(dataset), batch_size=8, shuffle=False))
    batches = [{**method(batch), "target": batch["target"]} for batch in loader]
    names = {"logits", "target", "hallucinated", "hallucination_target"} & batches[0].keys()
    return {name: torch.cat([batch[name] for batch in batches]).numpy() for name in names}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Accuracy of teacher and students on the test videos, and how much of the teacher was learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("--teacher")
    parser.add_argument("--student", default="timm/resnet10t")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args(arguments)
    table = read_table(args.table)
    train, test, task = table.select("train"), table.select("test"), Classification.of(table)
    scores: dict[str, float] = {}

    def measure(name: str, method: Method) -> dict[str, np.ndarray]:
        found = outputs(method, test)
        scores[name] = task.metrics(found["logits"], found["target"])["top1"]
        return found

    torch.manual_seed(0)
    if args.teacher:
        teacher = load_model(ModelConfig(name=args.teacher), num_classes=task.num_outputs)
    else:
        print("teacher")
        view = {"size": 64, "num_frames": 8, "stride": 2}
        teacher = create_model("resnet3d_10", num_classes=task.num_outputs, width=16, view=view)
        fit(build_method(MethodConfig(), teacher, {}, task), train, epochs=args.epochs)
    measure("teacher", build_method(MethodConfig(), teacher, {}, task))
    for name, weight in (("branch idle", 0.0), ("hallucinet", 50.0)):
        print(name)
        torch.manual_seed(0)
        student = create_model(args.student, num_classes=0, view={"size": 64})
        config = MethodConfig(name="hallucinate", options={"weight": weight})
        method = build_method(config, student, {"teacher": teacher}, task)
        fit(method, train, epochs=args.epochs)
        found = measure(name, method)
    seen = outputs(method, train)
    mean, class_means = feature_means(seen["hallucination_target"][:, 0], seen["target"], task.num_outputs)
    guess, truth = found["hallucinated"][:, 0], found["hallucination_target"][:, 0]  # (B, D): there is one moment
    scores |= hallucination_r2(guess, truth, mean=mean, class_means=class_means, labels=found["target"])
    return scores


if __name__ == "__main__":
    print("\n".join(f"{name:30} {value:.3f}" for name, value in main().items()))
