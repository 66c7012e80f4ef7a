"""Late fusion of two models that were trained apart: their probabilities, joined by Bayes' rule.

What a model of image and sequence must beat, if it is to have learnt anything from the two together.
"""

from collections.abc import Iterable, Iterator

import torch

Predictions = Iterable[tuple[dict[str, torch.Tensor], tuple]]  # as predictions.predict yields them


def join(logits: torch.Tensor, present: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """(B, C) float32 log p, normalised: sum of log p_m over the M modalities that a sample has - (M - 1) log prior.

    This is exact where the modalities of a class do not depend on each other: p(c | x_1, x_2) is proportional to
    p(c | x_1) p(c | x_2) / p(c), and where whether a sample has a modality does not depend on its class. With one
    modality it is that one's p, with none the prior. A class whose prior is 0 has probability 0 in every sample (log p
    -inf), also where a single modality speaks.

    Args:
        logits: (M, B, C) of each modality's own model. What stands there for a sample without it is never read.
        present: (B, M) bool.
        prior: (C,) shares of the classes, as the models learnt them; their sum is 1.
    """
    prior = prior.to(logits.device, torch.float32)
    there = present.to(logits.device).T[:, :, None]  # (M, B, 1)
    of_modalities = logits.float().log_softmax(2).masked_fill(~there, 0.0).sum(0)  # (B, C)
    log_p = of_modalities - (there.sum(0) - 1) * prior.log()
    return log_p.masked_fill(prior == 0, -torch.inf).log_softmax(1)


def predict_jointly(of_images: Predictions, of_sequences: Predictions, prior: torch.Tensor) -> Iterator[tuple]:
    """Yields (batch, output) as predictions.predict does: `logits` are the joint log p, `unimodal_logits` those of the
    two models, and the batch has of each model's what that model reads.

    Args:
        of_images, of_sequences: of a model that reads nothing else, for the same rows in batches of the same size.
        prior: see join.

    Raises ValueError where the rows are not the same.
    """
    for (batch, image), (sequence_batch, sequence) in zip(of_images, of_sequences, strict=True):
        for name in ("index", "label"):
            if not torch.equal(batch[name].cpu(), sequence_batch[name].cpu()):
                raise ValueError(f"late fusion: the two models were given rows that differ in their {name}")
        present = torch.stack([batch["present"][:, 0], sequence_batch["present"][:, 1]], dim=1)
        logits = torch.stack([image.logits.float(), sequence.logits.float()])
        output = image._replace(
            logits=join(logits, present, prior),
            embeddings=image.embeddings | sequence.embeddings,
            unimodal_logits={"image_branch": logits[0], "temporal_branch": logits[1]},
        )
        yield sequence_batch | {"image": batch["image"], "present": present}, output
