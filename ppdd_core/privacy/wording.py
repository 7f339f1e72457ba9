"""What each figure of the privacy report is called, how it is made and what it does not show.

Torch-free, and sentences only; no numbers that a measurement could contradict.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """The sentences of one figure."""

    title: str
    method: str
    does_not_show: str


def _words(title: str, method: str, does_not_show: str) -> Words:
    return Words(title, " ".join(method.split()), " ".join(does_not_show.split()))


WORDS = {
    "nearest_real_neighbour_ssim": _words(
        "Distilled images nearer to a training image than to any held-out one (SSIM)",
        """For each distilled image the most similar training image and the most similar image of
        held-out patients, from equally many of both, one per patient, in equal class proportions; SSIM (Gaussian
        window, sigma 1.5), the larger of as shown and with grey levels matched. Share of distilled
        images with the training image nearer (ties half), Wilson interval in which distilled images
        with the same nearest real image count as one. Held-out patients cannot have leaked, so 0.5 is
        what chance gives.""",
        """Distances alone say little: a set can look well here and still allow membership inference.
        Only as many training patients are drawn as there are held-out ones, so a patient who leaked
        may not be among them; few distilled images make a wide interval.""",
    ),
    "nearest_real_neighbour_features": _words(
        "Distilled images nearer to a training image than to any held-out one (features)",
        """As with SSIM, by cosine of what the last layer of a network sees that was trained on the
        distilled set alone (the first of those for membership inference), each feature standardised
        over the real images of both sides. That network was shown no real image of either side.""",
        """What other features would show: these tell classes apart, not people. Distances alone do
        not exclude membership inference.""",
    ),
    "near_copies": _words(
        "Distilled images that are near-copies of a training image",
        """Every distilled image against every training image by SSIM, as shown and with grey levels
        matched (brightness, contrast, negative); where there are too many pairs, all are compared by
        two cheap descriptors first (pixel correlation; correlation after local mean and contrast are
        taken out) and the best candidates of each by SSIM. Counted where it reaches
        near_copy_ssim.""",
        """Copies that are mirrored, turned, shifted or cropped, copied parts of an image, and
        mixtures of several patients. An image that is no copy can still carry what is particular to
        a patient.""",
    ),
    "initialisation_source_recognised": _words(
        "Distilled images whose own source is the most similar of all training images",
        """All training images ranked by similarity to each distilled image (pixel correlation;
        correlation after local mean and contrast are taken out; the better of both). Share of
        distilled images with one of their own sources at rank 1, Wilson interval. Images that
        started from noise have no source: there is nothing to recognise, by construction.""",
        """Recognition by other means than these similarities: eyes or a trained network may do
        better.""",
    ),
    "initialisation_residual_correlation": _words(
        "Correlation of each distilled image with the image it started from",
        """Pearson's correlation of the pixels before and after distillation, mean over the images,
        bootstrap interval. For images that started from noise it is left-over noise.""",
        """Whether what is left can be recognised; that is the figure of recognised sources.""",
    ),
    "membership_inference_auc": _words(
        "Membership inference: AUC",
        """Networks are trained on the package alone, as a receiver would. Score of an image:
        log(p / (1 - p)) of its own class, mean over the networks. Training images against those of
        held-out patients, one per patient, in equal class proportions; AUC within classes, DeLong interval. 0.5 is
        guessing. The upper end is judged.""",
        """Single patients: it is an average, and a few may stand out. Stronger attacks (shadow
        distillations, planted canaries) are not run, and a low AUC does not exclude that an image
        looks like a patient's.""",
    ),
    "membership_inference_tpr_at_1_fpr": _words(
        "Membership inference: training images found at 1 % false alarms",
        """Same scores, centred and scaled within each class. Share of training images above the
        threshold that at most 1 % of held-out images exceed, bootstrap interval over both. 0.01 is
        guessing. The lower end is judged.""",
        """Rates below 1 % false alarms, and attackers who know more than the package.""",
    ),
    "membership_inference_initialisation_auc": _words(
        "Membership inference: AUC of the images used for initialisation",
        """As the AUC, with the training images that distillation started from as members. They are
        few, so the lower end is judged: it fails where a leak is shown, not where one cannot be
        excluded.""",
        """That there is no leak, where the interval is wide.""",
    ),
    "smallest_class": _words(
        "Least number of patients in a class",
        """Patients (images where no patient is known) of the smallest class, as a lower bound:
        rounded down to 10, or the policy's minimum where it is met. Smaller numbers are suppressed,
        here and in the source summary.""",
        """How alike the patients of a class are: many patients do not protect an unusual one.""",
    ),
    "metadata": _words(
        "Metadata",
        """By construction: images are decoded to grey levels, and nothing else of a file enters the
        work. That the files of the package carry no metadata is checked on those files, by
        `ppdd package verify`, not here.""",
        """Text burned into the pixels of source images.""",
    ),
    "differential_privacy": _words(
        "Differential privacy",
        """None: the teachers were not trained with DP-SGD, so there is no epsilon and no delta.""",
        """A formal bound for any patient: every other figure here is empirical.""",
    ),
}
