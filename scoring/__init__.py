"""Learning a score from data: one file per objective, and what they are composed of."""

from scoring.dsm import DSM

OBJECTIVES = {"dsm": DSM}
