from fvae_nnunet.report.setting_text import setting_text


def test_settings_are_shown_without_the_syntax_of_json():
    values = [True, None, -1000.0, 0.25, 12345678, [-200.0, 300.0], {"a": 1, "b": [2, 3]}, "tiny"]
    assert [setting_text(value) for value in values] == [
        "yes", "none", "−1000", "0.25", "12345678", "−200, 300", "a 1; b 2, 3", "tiny"
    ]  # fmt: skip
