"""--exp names: which configuration they mean, and what a wrong one is answered."""

import pytest

from nsr.training.experiments import EXPERIMENTS, VARIANTS, experiment_conf
from nsr.utils.errors import UsageError


def test_a_name_and_a_variant_are_a_configuration():
    assert experiment_conf("NFFB", "dtu_fixed_cameras") == "encoders/nffb/dtu_fixed_cameras"
    assert experiment_conf("StylemodNFFB_TCNN", "h3ds_3_views") == "encoders/stylemod_nffb_tcnn/h3ds_3_views"


@pytest.mark.parametrize(("given", "meant"), [("nffb", "NFFB"), ("HashGridTCN", "HashGridTCNN"), ("posenc", "Posenc")])
def test_a_wrong_name_is_answered_with_the_nearest_and_all(given, meant):
    with pytest.raises(UsageError) as error:
        experiment_conf(given, "instant")
    assert f"--exp {given}: unknown experiment. Did you mean {meant!r}?" in str(error.value)
    assert all(name in str(error.value) for name in EXPERIMENTS)


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(UsageError, match=r"--exp x: unknown experiment\. Available: Posenc"):
        experiment_conf("x", "instant")


def test_a_wrong_variant_is_answered_with_the_nearest_and_all():
    with pytest.raises(UsageError) as error:
        experiment_conf("NFFB", "h3ds_5_views")
    assert "--exp NFFB: no configuration for 'h3ds_5_views'. Did you mean 'h3ds_" in str(error.value)
    assert all(name in str(error.value) for name in VARIANTS)
