"""Example B0 of docs/theory/nonconvex.md and its published check values (Results 21-30)."""

import dataclasses

from innerloop.bounds import Quantity
from innerloop.bounds.nonconvex import Constants

B0 = Constants(
    L_plus=1.0,
    ell=0.5,
    rho=2.0,
    G=1.0,
    sigma_g=0.5,
    sigma_H=0.8,
    sigma_gamma=0.6,
    sigma_Hgamma=0.3,
    L_plus_s=1.0,
    ell_s=0.5,
    rho_s=2.0,
    gap_drs=2.0,
    gap_maml=2.0,
)


def quantity(value, name, standing):
    """A number with a standing, as the library makes it."""
    return Quantity(value, name=name, source="a test", standing=standing)


def standing(word, constants=B0, **others):
    """The constants with this standing; others by name, {name: (value, standing)}."""
    known = constants.known().items()
    made = {name: quantity(float(value), name, word) for name, value in known}
    made.update({name: quantity(value, name, own) for name, (value, own) in others.items()})
    return dataclasses.replace(constants, **made)


SIZES = {"inner_lr": 0.1, "samples": 4, "queries": 4}

KAPPA = 1.05
SMOOTHNESS = (1.3125, 1.6901325000000003, 2.1447911657812506)  # K = 1, 2, 3
SMOOTHNESS_SAMPLES = 1.3175
BIAS_SAME, BIAS_SEPARATE = 0.0016562500000000004, 0.0006562500000000001
VARIANCE = (0.7221743125, 1.2249822377351274)  # K = 1, 2
VARIANCE_DRS = 0.39125
SGD_DRS = (0.01612887115094479, 0.24800247720781687)  # bound, rate
SGD_MAML = (0.02460487831917544, 0.16256938758695913)
SGD_POPULATION = (0.04354246721363016, 0.18374025501154823)
UPDATES_DRS, UPDATES_MAML, UPDATES_RATIO = 2356.2499999999995, 5284.32328359375, 2.2426836216843506
LINK_REFINED, LINK_CRUDE = 0.04410000000000001, 0.2100000000000002
CROSSOVER = 520.3844755259573
CROSSOVER_GUARANTEED = 7107196.42040482
VALUE_BOUND, VALUE_EXACT = 0.6356946647827645, 0.0696946303864575  # example W1
INVERSE = (1.2658227848101269, 0.2658227848101269)
