"""Learning a score from data: one file per objective, and what they are composed of."""

from scoring.dsm import DSM
from scoring.fd_ssm import FDSSM, FDSSMVR
from scoring.ism import ISM
from scoring.last_increment import LastIncrement
from scoring.lcss import LCSS
from scoring.ssm import SSM, SSMVR

OBJECTIVES = {
    "dsm": DSM,
    "lcss": LCSS,
    "ism": ISM,
    "ssm": SSM,
    "ssm_vr": SSMVR,
    "fd_ssm": FDSSM,
    "fd_ssm_vr": FDSSMVR,
    "last_increment": LastIncrement,
}
