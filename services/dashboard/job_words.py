"""What jobs say in codes, as a page says it: in English, which is what the tables of other languages translate."""

from __future__ import annotations

from services.jobs.models import Kind

KINDS = {
    Kind.CHECK: "check a dataset",
    Kind.DISTILL: "distil",
    Kind.PULL: "pull a package",
    Kind.TRAIN: "train a detector",
    Kind.EVALUATE: "measure a detector",
    Kind.PREDICT: "look at one image",
    Kind.ESTIMATE: "estimate",
}
OUTCOMES = {
    "succeeded": "It ended well.",
    "failed": "It went wrong.",
    "cancelled": "It was asked to stop, and did.",
    "lost": "The worker was not heard of any more; its machine may have been switched off.",
    "stopped": "The worker was stopped, saved what it had, and gave the job back.",
}
STAGES = {
    "images": "reading the images",
    "estimate": "estimating what it takes",
    "teachers": "training teachers",
    "distillation": "distilling",
    "evaluation": "evaluating",
    "privacy": "measuring privacy",
    "package": "making the package",
    "thumbnails": "drawing thumbnails",
    "bytes": "fetching",
    "verify": "verifying",
    "packages": "opening packages",
    "epochs": "training the detector",
    "evaluating": "measuring",
}
# By the slug of an error: what somebody can do about it.
ADVICE = {
    "disk-full": (
        "Free space on the node's disk (Source datasets and Packages that nobody needs can be "
        "removed), then resume."
    ),
    "store-full": "Free space in the object store, then resume.",
    "store-unavailable": "The object store must answer again; then resume.",
    "database-unavailable": "The database must answer again; then resume.",
    "out-of-memory": (
        "Ask for less: a smaller image size, or fewer distilled images per student step. Or "
        "give the worker more memory."
    ),
    "worker-lost": (
        "Look whether the worker's machine runs and has enough memory, then resume: the job "
        "goes on from what it kept."
    ),
    "bad-config": "It would end the same way again. Start a new distillation with a recipe that can work.",
    "bad-source": "Check the dataset again: its page says what to mend. Then resume.",
    "unsafe-source": "Somebody made this archive so that it does harm when it is opened. Find out where it comes from.",
    "bad-package": "Ask the hospital that made the package; it was not taken in.",
    "refused": "What it says above is what to change; then start a new job.",
    "dataset-unusable": "Open the dataset: its check says what to mend.",
    "dataset-removed": "Register the dataset again, then start a new job.",
    "unknown-path": (
        "The images are not where they were registered: mount the folder again, or register "
        "the new place."
    ),
    "package-taken": "Start it again under another version.",
    "token-gone": "Ask for the package again, with the token.",
    "object-damaged": (
        "A stored file was altered or lost. Ask an administrator to run the checks of the "
        "page System."
    ),
    "object-missing": (
        "A stored file was altered or lost. Ask an administrator to run the checks of the "
        "page System."
    ),
    "internal": (
        "This is a fault of the program. Send the job's log to whoever looks after it; it "
        "names no patient."
    ),
}
RESUME = "When the cause is gone, resume the job: it goes on from what it kept."
START_ANEW = "It would end the same way again: mend the cause, then start a new job."

PRESETS = {
    "quick": (
        "Minutes on two processor cores: images of 32 pixels and a small network. For trying "
        "the whole way, not for a result."
    ),
    "small": (
        "About an hour on two processor cores, minutes on a GPU: images of 64 pixels. A fair "
        "impression at half the size."
    ),
    "paper": "The paper's experiment: images of 112 pixels and 100 teachers. Many hours on a GPU.",
    "fast": (
        "The paper's image size at about a fifteenth of its arithmetic: fewer teachers, and "
        "only the epochs that are used."
    ),
}
GROUPS = {
    "": "Images",
    "net": "Network",
    "teacher": "Teachers",
    "distill": "Distillation",
    "detector": "Detectors that measure the result",
    "evaluation": "Evaluation",
    "privacy": "Privacy thresholds",
}
ASKED = {
    "preset": "preset",
    "images_per_class": "distilled images per class",
    "seed": "seed",
    "image_size": "image size in pixels",
}
SPLITS = {
    "train": "for training",
    "validation": "for validation",
    "test": "for the test",
    "unassigned": "not assigned",
}
SEVERITIES = {"error": "failed", "warning": "warn", "note": "busy"}  # the style that each has
