from fvae_nnunet.pictures.series import names_in_plot


def test_names_in_plots_are_short_and_differ():
    long = "nnUNetTrainerFVAE__nnUNetPlans"
    shown = names_in_plot([f"{long}_a", f"{long}_b", "c\x01"])
    assert len(set(shown.values())) == 3 and all(len(name) < 28 for name in shown.values())
    assert shown["c\x01"] == "c\ufffd"
