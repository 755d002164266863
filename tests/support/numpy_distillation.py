"""The loss of distillation and its gradient, derived by hand, in float64."""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def log_z(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(-1)
    return highest + np.log(np.exp(logits - highest[..., np.newaxis]).sum(-1))


def distilled(
    student: np.ndarray,
    teacher: np.ndarray,
    targets: np.ndarray,
    fraction: float,
    temperature: float,
    z_loss: float = 0.0,
) -> tuple[float, np.ndarray]:
    """The mean loss of the real tokens and its gradient with respect to the student's logits.

    For one position with student logits s, teacher logits t and target y, by hand:
        loss = (1 - f) (log Z(s) - s_y) + f T^2 sum_v softmax(t / T)_v (log Z(s / T) - s_v / T) + z log^2 Z(s)
        d loss / d s = (1 - f) (softmax(s) - onehot(y)) + f T (softmax(s / T) - softmax(t / T))
            + 2 z log Z(s) softmax(s)
    """
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    real = (targets != 0)[..., np.newaxis]
    one_hot = np.eye(student.shape[-1])[targets]
    soft = softmax(teacher / temperature)
    log_student = student - log_z(student)[..., np.newaxis]
    log_softened = student / temperature - log_z(student / temperature)[..., np.newaxis]
    hard_term = -(1 - fraction) * one_hot * log_student
    soft_term = -fraction * temperature**2 * soft * log_softened
    normalizer = z_loss * log_z(student)[..., np.newaxis] ** 2
    loss = ((hard_term + soft_term) * real).sum() + (normalizer * real).sum()
    gradient = (1 - fraction) * (softmax(student) - one_hot)
    gradient += fraction * temperature * (softmax(student / temperature) - soft)
    gradient += 2 * z_loss * log_z(student)[..., np.newaxis] * softmax(student)
    return loss / real.sum(), gradient * real / real.sum()
