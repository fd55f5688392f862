"""Turn an expensive video model into a cheap one: train a student that hallucinates motion, measure, use.

One typed function per command: its signature and docstring are the command line, the YAML schema and the help.
Heavy imports wait inside the functions.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillmotion.config import (
    DataConfig,
    LimitConfig,
    LiveConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RowConfig,
    TrainerConfig,
)
from stillmotion.data.faults import FLOW_SECONDS, TIMEOUT_SECONDS

if TYPE_CHECKING:
    from stillmotion.run import Run


def demo(
    output: str = "demo",
    *,
    seeds: list[int] = [0, 1, 2],
    workers: int = 2,
) -> int:
    """Shows the whole job on videos that it renders: no data, no network, minutes on two cores.

    A small video network learns six actions of a drawn figure; one-frame students learn them alone, with the
    HalluciNet branch untrained, hallucinating the video network's features, and hallucinating shuffled ones. In
    training the backdrop gives the class away, in the test it does not.

    Args:
        output: Folder of table, curves, confusion matrices, sample sheets and runs. A second call goes on where the
            first stopped.
        seeds: Seeds of the trainings.
        workers: Trainings side by side.
    """
    from stillmotion.demo import demo as run_demo

    return run_demo(Path(output), seeds=seeds, workers=workers)


def train(
    table: str,
    *,
    output: str,
    student: ModelConfig,
    method: MethodConfig = MethodConfig(),
    teacher: ModelConfig | None = None,
    features: str | None = None,
    data: DataConfig = DataConfig(),
    optim: OptimConfig = OptimConfig(),
    trainer: TrainerConfig = TrainerConfig(),
    seed: int = 0,
    root: str | None = None,
) -> "Run":
    """Trains a student, alone or from a teacher, and writes a run folder.

    The same command goes on where it was stopped (Ctrl-C, a crash, SIGKILL) and ends with the same weights. It learns
    column `label`, or `--targets COLUMN COLUMN:multilabel COLUMN:score ...`: any columns, a head for each.

    Args:
        table: CSV or Parquet table (path, label or other targets, split, group, ...), or a folder of class folders.
        output: Run folder.
        student: The network that is trained and delivered.
        method: How it is trained.
        teacher: The network that it learns from, by name or run folder; it sees every draw live.
        features: Instead of a live teacher: its features, as `stillmotion extract` wrote them.
        data: How samples are read and drawn.
        optim: Optimiser and schedule.
        trainer: Where and how it runs.
        seed: Decides weights, order and draws.
        root: Folder that the table's relative paths start from (default: the table's own).
    """
    from stillmotion.train import train as run_train

    return run_train(
        table,
        output=output,
        student=student,
        method=method,
        teacher=teacher,
        features=features,
        data=data,
        optim=optim,
        trainer=trainer,
        seed=seed,
        root=root,
    )


def evaluate(
    model: str,
    table: str,
    *,
    split: str = "test",
    teacher: str | None = None,
    fuse: list[str] = [],
    weights_on: str | None = None,
    calibrate_on: str | None = None,
    cascade_on: str | None = None,
    protocol: Literal["own", "static", "clip", "video"] = "own",
    moment: str | None = None,
    num_moments: int | None = None,
    num_crops: int | None = None,
    pooling: Literal["logits", "scores"] = "logits",
    view: dict[str, Any] = {},
    output: str | None = None,
    train_split: str = "train",
    targets: list[str] = [],
    short_side: int | None = None,
    packed: str | None = None,
    flow: str | None = None,
    workers: int = 1,
    batch_size: int = 16,
    device: str = "auto",
    root: str | None = None,
) -> int:
    """Measures a trained network on a split: accuracy, per class, confusion matrix, cost.

    Exit code 1 if a video could not be read; it is counted and listed.

    Args:
        model: Run folder, or a name on the Hugging Face Hub. With `fuse` also a file, as there.
        table: CSV or Parquet table, or a folder of class folders.
        split: Samples that are measured.
        teacher: Run folder of its teacher: gets a row too, and the first row tells the distance to it.
        fuse: Further networks, whose probabilities are averaged with the model's (late fusion): run folders, or a
            `predictions.csv` or `results.json` that an earlier `evaluate --output` wrote.
        weights_on: Held-out split on which the weights of that mean are chosen; default: all alike.
        calibrate_on: Held-out split on which a temperature is fitted, so that probabilities are right as often as they
            say. It is stored with the run; `predict` and what is exported afterwards use it.
        cascade_on: Held-out split on which the threshold of a cascade is chosen: the model answers, and the teacher
            where it is not sure.
        protocol: What is seen of a video: `own` as in training; `static` one frame; `clip` one clip; `video` several
            moments in equal parts (`num_moments`, 10), their logits averaged.
        moment: Which moment is seen: centre, first, last, uniform, keyframe.
        num_moments: How many; of a network that looks at them together, how long its sequence is.
        num_crops: 3, 5 or 10 crops of every frame, each with its own prediction; wants a view with `resize`.
        pooling: How the moments of a video are joined: mean of their `logits`, or of their `scores` (softmax).
        view: Further settings of `View` that differ from training.
        output: Folder for results.json (and CSV, Markdown, PNG), predictions.csv, per_class.csv, the confusion matrix,
            calibration.json and cascade.json (with pictures), broken.csv and report.html; the teacher's in `teacher/`.
            Default: print only.
        train_split: Training samples, whose mean features R2 is measured against.
        targets: Columns that hold the truth, if they are others than in training; `labels:multilabel` if one may hold
            several classes (`run|jump`): top1 and top5 are then Hit@1 and Hit@5.
        short_side: As in training unless given here.
        packed: Frame store to read from.
        flow: Flow store that views of flow read from.
        workers: Loader processes.
        batch_size: Videos at once.
        device: auto, cpu or cuda.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.evaluate import evaluate as run_evaluate
    from stillmotion.late_fusion import evaluate_fused
    from stillmotion.results import markdown_table

    settings: dict[str, Any] = {
        "split": split,
        "protocol": protocol,
        "moment": moment,
        "num_moments": num_moments,
        "num_crops": num_crops,
        "pooling": pooling,
        "view": view,
        "output": output,
        "targets": targets,
        "short_side": short_side,
        "packed": packed,
        "flow": flow,
        "workers": workers,
        "batch_size": batch_size,
        "device": device,
        "root": root,
    }
    if fuse:
        if teacher is not None:
            raise ValueError("teacher and fuse: a distance is that of one network; evaluate it without fuse")
        if calibrate_on is not None or cascade_on is not None:
            raise ValueError("fuse: a temperature and a cascade are of one network; evaluate it without fuse")
        rows, weights = evaluate_fused([model, *fuse], table, weights_on=weights_on, **settings)
        print("weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()))
    else:
        if weights_on is not None:
            raise ValueError(f"weights_on={weights_on}: weighs networks against each other; name some with fuse")
        settings |= {"calibrate_on": calibrate_on, "cascade_on": cascade_on}
        rows = run_evaluate(model, table, teacher=teacher, train_split=train_split, **settings)
    print(markdown_table(rows))
    return 1 if any("unreadable" in row["metrics"] for row in rows) else 0


def compare(
    table: str,
    *,
    output: str,
    rows: dict[str, RowConfig],
    baselines: list[str] = [],
    seeds: list[int] = [0, 1, 2],
    splits: str = "column",
    evaluate: dict[str, dict[str, Any]] = {},
    subsets: dict[str, dict[str, str]] = {},
    label_fractions: list[float] = [1.0],
    reference: list[str] = [],
    data: DataConfig = DataConfig(),
    optim: OptimConfig = OptimConfig(),
    trainer: TrainerConfig = TrainerConfig(),
    probe: ModelConfig | None = None,
    workers: int = 1,
    root: str | None = None,
) -> int:
    """Trains every row with every seed on every split, and writes one table.

    What is finished is kept, so the same command goes on where it was stopped. A run that fails is listed and the
    others go on; the exit code is then 1. Rows differ in what `rows` says and in nothing else.

    Args:
        table: CSV or Parquet table, or a folder of class folders.
        output: Folder of tables, pictures, predictions and runs (`runs/ROW/SPLIT/seedK`).
        rows: By name (in a YAML file). One with a `table` of its own is a stage before others, which start from its run
            (`row:NAME`).
        baselines: Rows without network training (`stillmotion list baselines`), on all labels, with the first seed.
        seeds: Of the trainings.
        splits: `column` (the table's own), `folds:K` or `leave-one-group-out` (over the groups of the training split),
            `column:NAME` (a column with fold numbers). Folds are pooled before a metric is taken.
        evaluate: Further views of the test videos, by name of the metric: `{"top1_first": {"moment": "first"}}`. The
            main metric alone (`top1`; `spearman` of a score, `joint` of several targets) is the view of the training
            unless given here.
        subsets: Test samples with these column values, by name of the metric:
            `{"top1_no_shortcut": {"backdrop": "plain"}}`.
        label_fractions: Shares of labels; a share below 1 makes rows `NAME@10%`, in which also a teacher `row:NAME` saw
            that share only (`row:NAME@100%` names one that saw all).
        reference: Rows that all others are compared with, sample by sample.
        data: How samples are read and drawn.
        optim: Optimiser and schedule of all trainings.
        trainer: Where and how they run.
        probe: Frozen network of the baseline `frame_linear`.
        workers: Trainings side by side; threads are shared out, at most OMP_NUM_THREADS each where that is set. On a
            machine that others use, too, give more workers or fewer threads than it has cores.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.compare import compare as run_compare

    return run_compare(
        table,
        output=output,
        rows=rows,
        baselines=baselines,
        seeds=seeds,
        splits=splits,
        evaluate=evaluate,
        subsets=subsets,
        label_fractions=label_fractions,
        reference=reference,
        data=data,
        optim=optim,
        trainer=trainer,
        probe=probe,
        workers=workers,
        root=root,
    )


def report(
    folder: str,
    *,
    table: str | None = None,
    root: str | None = None,
    student: str | None = None,
    plain: str | None = None,
    teacher: str | None = None,
    errors: int = 6,
    clips: int = 6,
    seconds: float = 20.0,
    device: str = "auto",
    output: str | None = None,
) -> int:
    """Writes the report of a training, an evaluation or a comparison: one HTML page that needs no other file.

    `train`, `evaluate --output` and `compare` write `report.html` by themselves, `train` without the parts that cost
    time: confident errors with their frames, where the networks look (Grad-CAM beside optical flow), and the training
    clips that are most like what the student hallucinates. A part whose data is missing is left out, with the reason.

    Args:
        folder: What `train`, `evaluate --output` or `compare` wrote.
        table: The table, where it is not where the settings say.
        root: Folder that the table's relative paths start from.
        student: Row of the comparison, or run folder, that is looked at (default: the first row that learns from a
            teacher).
        plain: The same student without a teacher.
        teacher: The teacher.
        errors: Mistakes that are shown, most confident first.
        clips: Clips that are looked at closely.
        seconds: For each part that costs time; what is ready by then is shown.
        device: auto, cpu or cuda.
        output: Where the page goes (default: `report.html` in the folder).
    """
    from stillmotion.report.page import write_report
    from stillmotion.report.subject import Limits

    print(
        write_report(
            folder,
            table=table,
            root=root,
            chosen={"student": student, "plain": plain, "teacher": teacher},
            limits=Limits(errors=errors, clips=clips, seconds=seconds, device=device),
            output=output,
        )
    )
    return 0


def predict(
    model: str,
    inputs: list[str],
    *,
    output: str | None = None,
    top: int = 5,
    overlay: str | None = None,
    view: dict[str, Any] = {},
    workers: int = 4,
    cluster: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
    device: str = "auto",
    reject: float | None = None,
    teacher: str | None = None,
    threshold: float | None = None,
    live: LiveConfig = LiveConfig(),
    events: str | None = None,
    threads: int | None = None,
    root: str | None = None,
) -> int:
    """Predicts files, folders, tables, cameras and streams.

    A file that cannot be read gets a line with `error`; the others go on. The exit code is then 1. Where it was stopped
    on files, the same command goes on behind what `output` has. A camera or stream is watched until Ctrl-C, SIGTERM or
    its end; one that is lost is connected again.

    Args:
        model: Run folder, or an exported file (`.onnx`, `.xml`, `.pt2`).
        inputs: Videos, stills, folders, tables, a camera's number, a stream's URL; `file://PATH` watches a file as a
            stream.
        output: `.jsonl` or `.csv`; default: JSON lines to the terminal.
        top: Classes that are named.
        overlay: `.mp4` with the prediction drawn in (one input), or a folder for one video an input.
        view: Settings of `View` that differ from training, such as `{"moment": "keyframe"}` or `{"num_moments": 8}`.
        workers: Threads that read files.
        cluster: `local` or HOST:PORT: a Ray cluster that reads and computes on all its cores in their place
            (files alone, no overlay).
        timeout: Seconds after which a file that is being read is given up.
        device: auto, cpu or cuda.
        reject: Answers that are less probable than this are `unsure`; the probabilities are listed all the same.
        teacher: Run folder or exported file of a teacher, which answers where the model is no surer than `threshold`.
        threshold: See `teacher`; `evaluate --cascade_on` chooses one.
        live: How cameras and streams are watched.
        events: Cameras and streams: `.jsonl` or `.csv` for what began and ended when.
        threads: For computing on the CPU (default: the library's choice, all cores).
        root: Folder that a table's relative paths start from.
    """
    from stillmotion.predict import predict as run_predict

    return run_predict(
        model,
        inputs,
        output=output,
        top=top,
        overlay=overlay,
        view=view,
        workers=workers,
        cluster=cluster,
        timeout=timeout,
        device=device,
        reject=reject,
        teacher=teacher,
        threshold=threshold,
        live=live,
        events=events,
        threads=threads,
        root=root,
    )


def serve(
    model: str,
    *,
    teacher: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    cors: list[str] = [],
    view: dict[str, Any] = {},
    top: int = 5,
    device: str = "auto",
    threads: int | None = None,
    limits: LimitConfig = LimitConfig(),
) -> int:
    """Serves a model over HTTP, with one page to try it in the browser.

    `POST /predict` takes a video or a still; `/openapi.json` describes it. Runs until Ctrl-C or SIGTERM, and then
    finishes what it has accepted. Only this computer reaches it unless `--host` says otherwise.

    Args:
        model: Run folder, or an exported file (`.onnx`, `.xml`, `.pt2`), which needs no torch.
        teacher: Another, whose answer stands beside that of the model.
        host: Address to listen on; 0.0.0.0 is every one of this computer's.
        port: 0 takes any that is free, and prints it.
        api_key: Wanted of clients. Other users of this computer see command lines: better set the environment variable
            STILLMOTION_API_KEY.
        cors: Origins whose pages may read answers, such as `["https://example.org"]`.
        view: Settings of `View` that differ from training, as for `predict`.
        top: Classes that are named.
        device: auto, cpu or cuda.
        threads: For computing on the CPU (default: the library's choice, all cores).
        limits: What the service takes, and how long it waits.
    """
    from stillmotion.serve.run import serve as run_serve

    return run_serve(
        model,
        teacher=teacher,
        host=host,
        port=port,
        api_key=api_key,
        cors=cors,
        view=view,
        top=top,
        device=device,
        threads=threads,
        limits=limits,
    )


def extract(
    table: str,
    *,
    teacher: ModelConfig,
    output: str,
    data: DataConfig = DataConfig(num_draws=1),
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    cluster: str | None = None,
    root: str | None = None,
) -> int:
    """Stores a teacher's features, so that training reads rows instead of running the teacher.

    The same command goes on where it was stopped. Training refuses features that do not match its settings. Exit code 1
    if a video could not be read; it is listed in `broken.csv`.

    Args:
        table: CSV or Parquet table, or a folder of class folders.
        teacher: The network, by name or run folder.
        output: Folder of the store; `train --features` reads it.
        data: As the training will have it: splits, `num_draws`, augmentation, frame size, workers.
        seed: Seed of the training; decides the draws.
        batch_size: Videos at once.
        device: auto, cpu or cuda.
        cluster: `local` or HOST:PORT: a Ray cluster that reads and computes on all its cores (and GPUs) in
            place of this process and `data.workers`.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.extract import extract as run_extract

    done = run_extract(table, teacher, output, data=data, seed=seed, batch_size=batch_size, device=device,
                       cluster=cluster, root=root)  # fmt: skip
    print(done.summary())
    return 1 if done.unreadable else 0


def features(
    model: str,
    table: str,
    *,
    output: str,
    taps: list[str] = ["embedding"],
    num_clips: int = 20,
    level: Literal["video", "clip"] = "video",
    weights: str | None = None,
    num_classes: int | None = None,
    view: dict[str, Any] = {},
    split: str | None = None,
    short_side: int | None = None,
    packed: str | None = None,
    flow: str | None = None,
    workers: int = 1,
    batch_size: int = 1,
    device: str = "auto",
    root: str | None = None,
) -> int:
    """Writes what a network's layers say of every video into one Parquet or npz file, for SVMs and other tools.

    The same command goes on where it was stopped. Exit code 1 if a video could not be read; it is listed beside the
    file and left out.

    Args:
        model: Run folder, or a network by name.
        table: CSV or Parquet table, or a folder of class folders.
        output: `.parquet` or `.npz`: `id` and a row of numbers for each tap.
        taps: `embedding`, `logits`, `prob` (their softmax), or layers by name, averaged over time and place
            (`LAYER:map`: all values in a row).
        num_clips: Clips of a video, spread evenly.
        level: `video` writes the mean over the clips, `clip` every clip.
        weights: Of a network by name: a file, or `default`.
        num_classes: Classes of these weights, where `logits` or `prob` are asked for; a run knows them.
        view: Settings of `View` that differ from the network's own.
        split: Only these samples (default: all).
        short_side: Reduce frames to this shorter side while decoding; a run: as in its training unless given here.
        packed: Frame store to read from.
        flow: Flow store that views of flow read from.
        workers: Loader processes.
        batch_size: Videos at once, each with all its clips.
        device: auto, cpu or cuda.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.protocols.features import extract_features

    done = extract_features(
        model,
        table,
        output,
        taps=taps,
        num_clips=num_clips,
        level=level,
        weights=weights,
        num_classes=num_classes,
        view=view,
        split=split,
        short_side=short_side,
        packed=packed,
        flow=flow,
        workers=workers,
        batch_size=batch_size,
        device=device,
        root=root,
    )
    print(done.summary())
    return 1 if done.unreadable else 0


def svm(
    features: str,
    table: str,
    *,
    protocol: str = "column",
    output: str | None = None,
    tap: str | None = None,
    target: str = "label",
    train: str = "train",
    test: str = "test",
    c: float = 1.0,
    normalise: Literal["l2", "none"] = "l2",
    seed: int = 0,
    root: str | None = None,
) -> int:
    """Trains and tests a linear SVM on stored features: how good is a network as a video representation?

    Exit code 1 if samples of the table have no features; they are counted and listed.

    Args:
        features: What `stillmotion features` wrote; clips are averaged.
        table: The same table, or one with other splits or labels.
        protocol: `column` (the table's splits), `leave-one-out` (every video once), `leave-one-group-out`, or `folds:K`
            over groups.
        output: Folder for results.json (and CSV, Markdown, PNG), predictions.csv, per_class.csv and the confusion
            matrix. Default: print only.
        tap: Which features of the file (default: the only ones, or `embedding`).
        target: Column of the class.
        train: Split that `column` trains on.
        test: Split that `column` tests.
        c: Cost of a mistake (the papers do not state it).
        normalise: `l2` divides each video's features by their length; `none` leaves them.
        seed: Of the folds and of the solver.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.protocols.svm import svm as run_svm
    from stillmotion.results import markdown_table

    row = run_svm(
        features,
        table,
        protocol=protocol,
        output=output,
        tap=tap,
        target=target,
        train=train,
        test=test,
        c=c,
        normalise=normalise,
        seed=seed,
        root=root,
    )
    print(markdown_table([row]))
    return 1 if "unreadable" in row["metrics"] else 0


def aslan(
    features: str,
    pairs: str,
    *,
    output: str | None = None,
    taps: list[str] | None = None,
    c: float = 1.0,
    normalise: Literal["standard", "l2"] = "standard",
) -> int:
    """Runs the ASLAN protocol on stored features: do two videos show the same action?

    Exit code 1 if a pair's video has no features; such pairs are counted and left out.

    Args:
        features: What `stillmotion features` wrote; in the paper with the taps prob, pool5, res5c and res4b.
        pairs: `View2.mat`, or a CSV with the columns first, second, same (0 or 1) and fold.
        output: Folder for results.json (and CSV, Markdown, PNG) and pairs.csv. Default: print only.
        taps: Which features of the file (default: all); each gives 12 similarities.
        c: Cost of a mistake (the papers do not state it).
        normalise: `standard` gives each similarity mean 0 and variance 1 over the training folds; `l2` divides the
            similarities of a pair by their length.
    """
    from stillmotion.protocols.aslan import aslan as run_aslan
    from stillmotion.results import markdown_table

    row = run_aslan(features, pairs, output=output, taps=taps, c=c, normalise=normalise)
    print(markdown_table([row]))
    return 1 if "pairs_left_out" in row["metrics"] else 0


def pack(
    table: str,
    *,
    output: str,
    short_side: int | None = 128,
    codec: Literal["jpeg", "raw"] = "jpeg",
    quality: int = 95,
    workers: int = 2,
    cluster: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
    root: str | None = None,
) -> int:
    """Decodes a table's videos once into a frame store, from which later epochs read (`--data.packed FOLDER`).

    The same command goes on where it was stopped. Exit code 1 if a video could not be read; the store lists it.

    Args:
        table: CSV or Parquet table, or a folder of class folders; all its splits are packed.
        output: Folder of the store.
        short_side: Reduce frames to this shorter side (`--data.short_side` of the training); null keeps their size.
        codec: `raw` keeps every bit, `jpeg` takes about a tenth of the space.
        quality: Of JPEG, 1 to 95.
        workers: Processes that decode.
        cluster: `local` or HOST:PORT: a Ray cluster that decodes on all its cores in their place.
        timeout: Seconds after which a video is given up and listed; needs a worker.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.data.pack import pack as run_pack

    done = run_pack(table, output, root=root, short_side=short_side, codec=codec, quality=quality, workers=workers,
                    cluster=cluster, timeout=timeout)  # fmt: skip
    print(f"{output}: {done}")
    return 1 if done.errors else 0


def flow(
    table: str,
    *,
    output: str,
    method: Literal["dis", "tvl1", "farneback", "raft_small", "raft_large"] = "dis",
    step: int = 1,
    short_side: int | None = None,
    stretch: bool = False,
    fps: float | None = None,
    bound: float | None = None,
    layout: Literal["video", "mars", "two-stream"] = "video",
    quality: int | None = None,
    weights: str | None = None,
    device: str = "auto",
    workers: int = 2,
    cluster: str | None = None,
    timeout: float = FLOW_SECONDS,
    preview: int = 0,
    root: str | None = None,
) -> int:
    """Computes the optical flow of a table's videos once, for views of flow to read (`--data.flow FOLDER`).

    The same command goes on where it was stopped. Over a folder that the papers' tools wrote it computes nothing and
    only adds what is known of each video. Exit code 1 if a video could not be read, or only in part; it is listed in
    `broken.csv`.

    Args:
        table: CSV or Parquet table, or a folder of class folders; all its splits are computed.
        output: Folder of the store.
        method: `dis` (fast), `tvl1` (as the papers, a hundred times slower), `farneback`, or the networks `raft_small`
            and `raft_large` (a GPU, or patience).
        step: Frames between the two of a field.
        short_side: Reduce frames to this shorter side before (`--data.short_side` of the training).
        stretch: Stretch dark videos over the whole range of grey before.
        fps: Re-sample videos to this rate before (MARS: 25); default: their own frames.
        bound: Pixels beyond which motion is cut off (default: 20 in the papers' layouts, nothing in `video`).
        layout: `video` one small file a sample; `mars` (VIDEO/TVL1jpg_x_00001.jpg) or `two-stream`
            (u/VIDEO/frame000001.jpg).
        quality: Of JPEG, 1 to 100 (default: 95 in the papers' layouts, 75 in `video`).
        weights: Of RAFT: a file with torchvision's state dict, or `default` (a download).
        device: Where RAFT computes: auto, cpu or cuda.
        workers: Processes, each on one thread.
        cluster: `local` or HOST:PORT: a Ray cluster that computes on all its cores in their place.
        timeout: Seconds after which a video is given up and listed (default: a day, as TV-L1 is slow); needs a worker.
        preview: Also write so many videos of frames beside their flow in colours, to `OUTPUT/preview`.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.data.compute_flow import compute_flow
    from stillmotion.data.flow_store import FlowSettings

    settings = FlowSettings(method=method, step=step, stretch=stretch, short_side=short_side, fps=fps, bound=bound,
                            layout=layout, quality=quality)  # fmt: skip
    done = compute_flow(table, output, settings, weights=weights, device=device, workers=workers,
                        cluster=cluster, timeout=timeout, root=root)  # fmt: skip
    print(done)
    if preview:
        from stillmotion.report.flow_preview import write_previews

        for path in write_previews(output, table, preview, root=root):
            print(path)
    return 1 if done.errors or done.faults else 0


def export(
    run: str,
    *,
    output: str,
    format: Literal["onnx", "openvino", "torch-export"] | None = None,
    precision: Literal["float32", "float16", "bfloat16", "int8"] = "float32",
    preprocess: bool = False,
    dynamic_frames: bool = False,
    table: str | None = None,
    split: str | None = None,
    calibration_samples: int = 64,
    float_layers: int = 4,
    max_drop: float = 1.0,
    max_samples: int | None = None,
    licence: str | None = None,
    view: dict[str, Any] = {},
    root: str | None = None,
) -> int:
    """Writes a network as one file that `stillmotion predict` runs without torch.

    Bytes go in, normalisation is inside, the batch size is free; classes, views, input rule, licence and the hashes of
    the training travel in the metadata. The file is compared with the network at three batch sizes and on the
    validation split; both are told in `OUTPUT.report.json`. A file that does not agree is not delivered (exit code 1).
    Exit code 1 too if a sample could not be read; it is listed in the report.

    Args:
        run: Run folder, or a name on the Hugging Face Hub.
        output: Where the file goes: `.onnx`, `.xml` (OpenVINO, with its weights in a `.bin` beside it) or `.pt2`.
        format: onnx, openvino or torch-export (default: as the suffix says).
        precision: float16 and bfloat16 store the weights in 16 bits and compute in float32; int8 computes in 8 bits.
        preprocess: Take frames of any size, and resize and crop them inside.
        dynamic_frames: Leave the number of frames free: of a clip, or of a sequence.
        table: Samples to compare on and to calibrate with (default: the table of the run's training).
        split: That is compared on (default: the validation split, or else the test split).
        calibration_samples: Of int8: training samples whose frames give the ranges of the activations.
        float_layers: Of int8: so many first convolutions or linear layers stay float32: their ranges are the widest.
        max_drop: Points that the main metric may lose.
        max_samples: Compare on so many samples at most, spread evenly over the split.
        licence: Of the weights (default: what the library says of weights that it gave).
        view: Settings of `View` that differ from training.
        root: Folder that the table's relative paths start from.
    """
    import sys

    from stillmotion.export import NotDelivered
    from stillmotion.export import export as run_export
    from stillmotion.export.report import read_report, report_rows

    try:
        path = run_export(
            run,
            output,
            format=format,
            precision=precision,
            preprocess=preprocess,
            dynamic_frames=dynamic_frames,
            table=table,
            split=split,
            calibration_samples=calibration_samples,
            float_layers=float_layers,
            max_drop=max_drop,
            max_samples=max_samples,
            licence=licence,
            view=view,
            root=root,
        )
    except NotDelivered as error:
        print(f"stillmotion: error: {error}", file=sys.stderr)
        return 1
    report = read_report(path)
    _print_table(*report_rows(report))
    print(path)
    if report["unreadable"]:
        print(f"{len(report['unreadable'])} samples could not be read; they are listed in {path}.report.json",
              file=sys.stderr)  # fmt: skip
    return 1 if report["unreadable"] else 0


def benchmark(
    models: list[str],
    *,
    videos: list[str] = [],
    split: str | None = None,
    max_samples: int = 16,
    batch_sizes: list[int] = [1, 8],
    train: bool = False,
    view: dict[str, Any] = {},
    rounds: int = 5,
    threads: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    clock: Literal["wall", "cpu"] = "wall",
    output: str | None = None,
    root: str | None = None,
) -> int:
    """Measures networks side by side: teacher beside student, alone or, with --videos, from file to prediction.

    Without --videos: parameters, GMACs, milliseconds and memory of the networks on random frames.

    With --videos the cost card: all networks on the same videos, each in a process of its own, in turn. Milliseconds of
    decoding, flow, pre-processing and network, and percentiles of their sum, one video at a time; videos a second; peak
    memory; frames, and compressed bytes that must be read for them; energy where the machine tells; accuracy on the
    labels of the videos, or else that of the training or export. Videos that cannot be read are listed, and left out
    for all networks (exit code 1).

    Args:
        models: Names, run folders or, with --videos, exported files too; the last column compares with the first. JSON
            text is read as settings of a network: `'{"name": "c3d", "view": {"size": 112}}'`.
        videos: Files, folders or tables.
        split: Of a table: time these samples (default: all).
        max_samples: Time so many videos at most, spread evenly.
        batch_sizes: Clips a run (without --videos).
        train: Time a training step (forward and backward), not a prediction (without --videos).
        view: Settings of `View` that differ from the networks' own, for all of them.
        rounds: Timed runs; the median counts.
        threads: For computing on the CPU.
        device: Where they run.
        clock: With --videos: `cpu` counts the seconds in which processors work for a network, over all its threads;
            other work on the machine disturbs them less.
        output: JSON file to write as well; with --videos also CSV and picture, and it may be a folder. In a run folder,
            the run's model card shows them.
        root: Folder that a table's relative paths start from.
    """
    configs = [_model_config(model, view) for model in models]
    if videos:
        return _cost_card(configs, videos, output, root=root, split=split, max_samples=max_samples, rounds=rounds,
                          threads=threads, device=device, clock=clock)  # fmt: skip
    if split is not None or clock != "wall":
        raise ValueError("split and clock belong to --videos; name the videos, or leave them out")
    from stillmotion.benchmark import benchmark as run_benchmark
    from stillmotion.benchmark import table_rows

    measured = run_benchmark(configs, batch_sizes=batch_sizes, train=train, rounds=rounds, threads=threads,
                             device=device, output=output)  # fmt: skip
    _print_table(*table_rows(measured))
    return 0


def _model_config(model: str, view: dict[str, Any]) -> ModelConfig:
    """A network by its name, or by its settings as JSON text."""
    import json

    if not model.lstrip().startswith("{"):
        return ModelConfig(name=model, view=dict(view))
    try:
        found = ModelConfig(**json.loads(model))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"model {model}: not the settings of a network ({error})") from None
    return replace(found, view={**found.view, **view})


def _cost_card(configs: list[ModelConfig], videos: list[str], output: str | None, **settings: Any) -> int:
    import sys

    from stillmotion.cost_card import cost_card
    from stillmotion.report.card import write_card
    from stillmotion.report.cost import card_path, resource_rows, time_rows, write_card_files

    target = card_path(output) if output is not None else None
    card = cost_card(configs, videos, **settings)
    _print_table(*time_rows(card))
    _print_table(*resource_rows(card))
    for name, reason in (*card.broken.items(), *card.faults.items()):
        print(f"{name}: {reason}", file=sys.stderr)
    if target is not None:
        print(write_card_files(card, target))
        if (target.parent / "settings.json").is_file():
            write_card(target.parent)
    return 1 if card.broken or card.faults else 0


def check(
    table: str,
    *,
    json: str | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
    root: str | None = None,
) -> int:
    """Decodes every video of a table and says what is wrong with which.

    Exit code 0: all readable; 1: something is not; 2: the table itself is wrong.

    Args:
        table: CSV or Parquet table, or a folder of class folders.
        json: Also write the report to this file.
        workers: Processes (default: one a core).
        cluster: `local` or HOST:PORT: a Ray cluster that decodes on all its cores in their place.
        timeout: Seconds after which a video is given up and counts as unreadable.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.data.check import check as run_check

    return run_check(table, root=root, json=json, workers=workers, cluster=cluster, timeout=timeout)


def split(
    table: str,
    *,
    output: str,
    test_share: float = 0.2,
    val_share: float = 0.0,
    target: str | None = "label",
    seed: int = 0,
    root: str | None = None,
) -> int:
    """Divides a table, or a folder of class folders, into training and test, and writes it as CSV.

    Samples of one group stay together, classes stay in proportion. A table that has splits is refused.

    Args:
        table: CSV or Parquet table, or a folder of class folders.
        output: The CSV to write; paths in it are relative to its folder where possible.
        test_share: Share of the groups for the split `test`; every class with two groups is in both.
        val_share: Share of the rest for the split `val`. Without one, trainings that need validation hold out groups.
        target: Column of the classes that are kept in proportion; null draws groups alone.
        seed: Which groups.
        root: Folder that the table's relative paths start from.
    """
    from stillmotion.data.sets import summary
    from stillmotion.data.split import write_splits

    shares = {"test": test_share, "val": val_share}
    print(f"{output}: {summary(write_splits(table, output, shares, target=target, seed=seed, root=root))}")
    return 0


def table(
    name: str,
    root: str,
    *,
    output: str,
    annotations: str | None = None,
    split: int | None = None,
    set: int | None = None,
    missing: Literal["error", "skip", "keep"] = "error",
    options: dict[str, Any] = {},
) -> int:
    """Makes the table of a known data set from its official files.

    Args:
        name: ucf101, hmdb51, kinetics, arid, ut_interaction, fight_surv, kth, activitynet, sports1m, aslan, yupenn,
            dynamic_scenes, yup_plus_plus, static_yup_plus_plus, mtl_aqa, unlv_dive, aqa7.
        root: Folder with the videos.
        output: The CSV to write; paths in it are relative to its folder where possible.
        annotations: Official lists (file or folder), where they do not lie with the videos.
        split: Official split (ucf101, hmdb51, arid: 1-3, default 1; mtl_aqa, unlv_dive: 0, the default, unlv_dive also
            4), test sequence (ut_interaction: 1-20), test fold (fight_surv: 0-4), test event (mtl_aqa: 1-26) or draw
            (yup_plus_plus: 1-10).
        set: Set of ut_interaction, 1 or 2.
        missing: Listed videos that are not there: `error`, `skip` them, or `keep` their rows.
        options: Further options of a set (`stillmotion list sets`), as `--options.window annotated`.
    """
    from stillmotion.data.sets import make_table

    make_table(
        name, root, output=output, annotations=annotations, split=split, set=set, missing=missing, options=options
    )
    return 0


def fetch_list(name: str | None = None) -> int:
    """Says what to obtain for a known data set (page, files, terms), and how it must lie to be read.

    Args:
        name: One set (`stillmotion list sets`); default: all.
    """
    from stillmotion.data.sets import fetch_list as text_of

    print(text_of(name))
    return 0


def baselines(name: str, *, root: str, json: str | None = None) -> int:
    """Prints how far a data set's scores and classes can be guessed without looking at any video.

    A score is guessed as the mean score of the training samples that are alike in a few columns, a class as the most
    frequent one. Put these beside every result of a network.

    Args:
        name: mtl-aqa, unlv-dive.
        root: Folder with the official annotations; no video is needed.
        json: Also write the numbers to this file.
    """
    from stillmotion.protocols.no_pixel import no_pixel, table_rows

    found = no_pixel(name, root, output=json)
    _print_table(*table_rows(found))
    return 0


def render_scenes(
    *,
    output: str,
    num_videos: int = 6,
    train_share: float = 0.5,
    seed: int = 0,
    size: tuple[int, int] = (128, 96),
    num_frames: int = 24,
    variety: float = 0.0,
    workers: int = 2,
) -> int:
    """Renders videos of twelve moving scenes (waves, fire, snow, traffic, ...), laid out as YUP++, with a table.

    Half of them are seen by a camera that stands still, half by one that moves. They need no data set; a result on
    them says nothing about real scenes.

    Args:
        output: Folder of `table.csv` (path, label, split, camera) and the videos.
        num_videos: Of every class and kind of camera.
        train_share: Share of them that is for training.
        seed: Decides everything.
        size: Width and height in pixels, both even.
        num_frames: Frames of a video, 12 a second.
        variety: 0: whole scenes in their own colours, which a single frame tells apart; up to 1: close-ups of any part,
            in any light, with shifted or faded colours.
        workers: Processes that draw.
    """
    from stillmotion.data.render.scenes import render_scenes as run_render
    from stillmotion.data.sets import summary

    table = run_render(
        output,
        num_videos=num_videos,
        train_share=train_share,
        seed=seed,
        size=size,
        num_frames=num_frames,
        variety=variety,
        workers=workers,
        progress=True,
    )
    print(f"{table.source}: {summary(table)}")
    return 0


def render_dives(
    *,
    output: str,
    dives: int = 240,
    events: int = 8,
    test_share: float = 0.25,
    seed: int = 0,
    size: tuple[int, int] = (160, 120),
    workers: int = 2,
) -> int:
    """Renders videos of dives from the ten-metre platform, with the table columns of MTL-AQA.

    Take-off, somersaults, twists and position follow the dive's number; faults that one sees decide what seven judges
    give. Venue, light and camera belong to the event. The same command goes on where it was stopped. A result on these
    videos says nothing about real diving.

    Args:
        output: Folder of `table.csv`, `table_by_event.csv` and the videos, one for each dive, about 108 frames at 25 a
            second.
        dives: In all events.
        events: Venues; they are the groups of the table.
        test_share: Share for the test: of the dives of every event in `table.csv`, of the events in
            `table_by_event.csv`.
        seed: Decides everything.
        size: Width and height in pixels, both even.
        workers: Processes that draw.
    """
    from stillmotion.data.render.dives import render_dives as run_render
    from stillmotion.data.sets import summary

    table = run_render(
        output,
        num_dives=dives,
        num_events=events,
        test_share=test_share,
        seed=seed,
        size=size,
        workers=workers,
        progress=True,
    )
    print(f"{table.source}: {summary(table)}")
    return 0


def list_models(
    pattern: str = "*",
    *,
    kind: Literal["image", "video"] | None = None,
    weights: bool = False,
    max_gmacs: float | None = None,
) -> int:
    """Lists networks: name, kind, what they see, parameters, GMACs, width, weights, licence.

    Parameters, GMACs and width are counted where 20 networks or fewer match.

    Args:
        pattern: As `timm/resnet*`; without a wildcard, a part of the name.
        kind: Those that see frames one by one, or clips.
        weights: Those with weights to download.
        max_gmacs: Those that cost no more for what they see; they are counted then, however many match.
    """
    from stillmotion.models.catalogue import list_models as find

    models = find(pattern, kind=kind, weights=weights, max_gmacs=max_gmacs)
    if not models:
        raise ValueError(f"no network matches {pattern!r}; try `--pattern resnet`, without further filters")
    head = ("name", "kind", "frames", "size", "parameters", "GMACs", "width", "weights", "licence")
    rows = [
        (m.name, m.kind, str(m.num_frames), f"{m.size[0]}x{m.size[1]}", f"{m.params:,}" if m.params else "",
         f"{m.gmacs:.3g}" if m.gmacs else "", str(m.width or ""), m.weights[0] if m.weights else "", m.licence or "")
        for m in models
    ]  # fmt: skip
    _print_table(head, rows)
    return 0


def list_methods() -> int:
    """Lists methods with the options that `--method.options` takes."""
    from stillmotion.methods import METHODS, method_options

    rows = [
        (
            name,
            (method.__doc__ or "").splitlines()[0],
            ", ".join(f"{k}={method.defaults.get(k, p.default)}" for k, p in method_options(name).items()),
        )
        for name, method in METHODS.items()
    ]
    _print_table(("method", "what", "options"), rows)
    return 0


def list_sets() -> int:
    """Lists data sets whose official files `stillmotion data table` reads, and their options."""
    from stillmotion.data.sets import SETS, set_options

    rows = [
        (name, (reader.__doc__ or "").splitlines()[0], ", ".join(f"{k}={v}" for k, v in set_options(name).items()))
        for name, reader in SETS.items()
    ]
    _print_table(("set", "format", "options"), rows)
    return 0


def list_baselines() -> int:
    """Lists baseline rows that `stillmotion compare` offers without training a network."""
    from stillmotion.baselines import BASELINES, written

    rows = [(written(name), (b.__doc__ or "").splitlines()[0]) for name, b in BASELINES.items()]
    _print_table(("baseline", "what"), rows)
    return 0


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table in a terminal, tab-separated lines in a pipe."""
    import sys

    if not sys.stdout.isatty():
        for row in (head, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
