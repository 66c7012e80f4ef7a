"""Late fusion of two models that were trained apart: their probabilities, joined by Bayes' rule.

What a model of image and sequence must beat, if it is to have learnt anything from the two together.
"""

from dataclasses import replace

import torch

from app.evaluation.predictions import Predictions
from app.training.objective import BRANCHES


def join(logits: torch.Tensor, present: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """(B, C) float32 log p, normalised: sum of log p_m over the M modalities that a sample has - (M - 1) log prior.

    This is exact where the modalities of a class do not depend on each other: p(c | x_1, x_2) is proportional to
    p(c | x_1) p(c | x_2) / p(c), and where whether a sample has a modality does not depend on its class. With one
    modality it is that one's p, with none the prior. A class whose prior is 0 has probability 0 in every sample (log p
    -inf), also where a single modality speaks.

    Args:
        logits: (M, B, C) float32, of each modality's own model. What stands there for a sample without it is not read.
        present: (B, M) bool.
        prior: (C,) shares of the classes, as the models learnt them; their sum is 1.
    """
    prior = prior.float()
    there = present.T[:, :, None]  # (M, B, 1)
    of_modalities = logits.log_softmax(2).masked_fill(~there, 0.0).sum(0)  # (B, C)
    log_p = of_modalities - (there.sum(0) - 1) * prior.log()
    return log_p.masked_fill(prior == 0, -torch.inf).log_softmax(1)


def join_predictions(of_images: Predictions, of_sequences: Predictions, prior: torch.Tensor) -> Predictions:
    """Those of both models as one: `logits` are the joint log p, `unimodal_logits` those of the two models.

    Args:
        of_images, of_sequences: of a model that reads nothing else, for the same samples in the same order.
        prior: see join.
    """
    logits = torch.stack([of_images.logits, of_sequences.logits])
    present = torch.stack([of_images.present[:, 0], of_sequences.present[:, 1]], dim=1)
    own = dict(zip(BRANCHES, logits, strict=True))
    return replace(of_images, present=present, logits=join(logits, present, prior), unimodal_logits=own)
