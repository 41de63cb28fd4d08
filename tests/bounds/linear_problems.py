"""Example W1 of docs/theory/linear.md, its check values, random laws, and simulated tasks."""

import numpy as np

from innerloop.bounds import linear

# Two tasks, p = 2; the check values are for rate 0.3 and N = 5 unless named otherwise.
Q1 = np.array([[2.0, 0.5], [0.5, 1.0]])
Q2 = np.array([[0.5, -0.2], [-0.2, 1.5]])
W1 = linear.Mixture([0.5, 0.5], [Q1, Q2], [[1.0, -1.0], [0.5, 2.0]], [0.5, 1.0])
STEP = {"inner_lr": 0.3, "samples": 5}

V_Q1 = [[20.25, 6.375], [6.375, 7.5]]
CUBE_Q1 = [[25.76, 9.38], [9.38, 7.0]]
FOURTH_Q1 = [[127.876, 48.384], [48.384, 31.108]]
B = [[1.0, 2.0], [0.0, -1.0]]
SANDWICH_Q1_B = [[7.7, 4.9], [2.1, 0.7]]

POINT = [0.25, 0.5]
A1 = [[0.647, 0.041], [0.041, 0.565]]
A2 = [[0.37352, -0.040352], [-0.040352, 0.57528]]
RISK_SAMPLES, RISK_POPULATION, RISK_BEFORE = 1.106584625, 0.94871421875, 1.7515625

DRS = [0.43100649350649356, 0.9082792207792207]
MAML = [0.6974009916725114, 0.53138885550689]
MAML_POPULATION = [0.8572631399139186, 0.517039896965435]
RISK_MINIMUM = 1.055230434928987
GAP, GAP_POPULATION, GAP_SMALL_RATE = (
    0.05856618506120933,
    0.0696946303864575,
    7.389357137467724e-07,  # rate 1e-3
)
GAP_COEFFICIENT = 0.7386940406176828

PSI_DRS = [
    [0.476504505792503, -0.2634003777776607],
    [-0.2634003777776607, 3.292500826841584],
]
PSI_MAML = [
    [0.35077385203977185, -0.13958897898210787],
    [-0.13958897898210793, 1.4142802723397256],
]
PSI_CROSS = [
    [0.09810124704630974, -0.1627973391421893],
    [-0.22869006623961372, 1.519671862664256],
]
BIAS_DRS = [0.2485639386966551, -0.37454052472658056]
WEIGHTED_SCORE_DRS = [-0.2545238446618318, 0.43089106510372743]  # E[W Wb^-1 psi]
C_DRS, C_MAML = 0.6158734807533022, 1.5841688334102069
CROSSOVER = 16.533351995608204
MISMATCH_DRS = (0.09102527689645379, 0.4628553487814494)  # train (.1, 4), test (.4, 8)
MISMATCH_MAML = (0.05874858246847253, 0.8195239836365882)

KAPPA_W_DRS, KAPPA_W_MAML, KAPPA_H_DRS = 1.7840793048909092, 3.003751189112629, 0.49608802848036515
TRACE_DRS, TRACE_MAML = 3.110569337094745, 3.1683376668204133
GUARANTEE_DRS, GUARANTEE_MAML = 0.1327342750982849, 0.03433289657172204  # M = 800, delta = .1
COARSE = (
    2.207106781186548,
    1.9913018844187151,
    1.5609990347887734,
    1.1,
    0.5102582469451103,
    1.3979189900799998,
    2.757600000000001,
    1.15064,
)
COARSE_DRS, COARSE_MAML = 23.22948678186364, 47.186139156719776


def random_mixture(rng, p, tasks=3, top=1.0):
    """A random mixture whose eigenvalues are at most `top`."""
    frames = np.linalg.qr(rng.normal(size=(tasks, p, p)))[0]
    values = rng.uniform(0.1 * top, top, (tasks, p))
    q = np.einsum("gij,gj,gkj->gik", frames, values, frames)
    weights = rng.dirichlet(np.ones(tasks) * 3.0)
    return linear.Mixture(
        weights, q, rng.normal(size=(tasks, p)), rng.uniform(0.1, 1.0, size=tasks)
    )


def draw_sides(rng, tasks, samples):
    """Support and query sufficient statistics of drawn tasks: two pairs (Qh [T, p, p], e [T, p]).

    The rows are drawn one by one; nothing of the library's shortcuts is used.
    """
    count, p = tasks.theta.shape
    factor = np.linalg.cholesky(tasks.Q)
    sides = []
    for _ in range(2):
        x = np.einsum("tij,tnj->tni", factor, rng.standard_normal((count, samples, p)))
        noise = rng.standard_normal((count, samples)) * np.sqrt(tasks.sigma2)[:, None]
        sides.append(
            (np.swapaxes(x, 1, 2) @ x / samples, np.einsum("tni,tn->ti", x, noise) / samples)
        )
    return sides


def scores(tasks, sides, rate, drs, maml):
    """(W, psi) of joint training and of MAML for drawn tasks around given targets."""
    (q1, e1), (q2, e2) = sides
    step = np.eye(q1.shape[-1]) - rate * q1
    joint = (q1 + q2) / 2.0
    psi_joint = np.einsum("tij,tj->ti", joint, tasks.theta - drs) + (e1 + e2) / 2.0
    v = np.einsum("tij,tj->ti", step, tasks.theta - maml) - rate * e1
    psi = np.einsum("tij,tj->ti", step, np.einsum("tij,tj->ti", q2, v) + e2)
    return (joint, psi_joint), (step @ q2 @ step, psi)
