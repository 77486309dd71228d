"""Heads: the classifiers that are trained on frozen embeddings."""

from common.heads.fit import ChosenHead, fit_chosen, fit_heads
from common.heads.jobs import FitError, FittedHead, Job, Split, check_fittable, check_labels
from common.heads.recipes import HEADS, TUNED, HeadKind, Recipe, fit_recipe_scaler, head_title, new_head, recipe_for
from common.heads.scalers import SCALERS, fit_scaler, one_blas_thread
from common.heads.trained import (
    HeadFileError,
    KnownSounds,
    NoneOfTheseError,
    OtherEncoderError,
    PlattScaling,
    Threshold,
    TrainedHead,
    conformal_threshold,
    draw_known,
    outputs_behind,
)
