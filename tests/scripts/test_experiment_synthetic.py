from __future__ import annotations

from argparse import Namespace

import experiment_synthetic


def steps_of(**changed):
    options = {
        "kind": "lung",
        "real": 4,
        "test": 12,
        "n": 60,
        "trainings": 2,
        "base_epochs": 10,
        "epochs": 5,
        "ldm_steps": 4000,
        "seed": 0,
    }
    return experiment_synthetic.planned(Namespace(**options, device="cpu", **changed))


def options_of(step):
    """What the command was told, by option."""
    options, name = {}, ""
    for part in step.command:
        if part.startswith("-"):
            name = part
            options[name] = []
        elif name:
            options[name].append(part)
    return options


def test_arms_differ_in_the_trainer_alone():
    steps = {step.name: step for step in steps_of()}
    for training in (1, 2):
        real, synthetic = (steps[f"7-train-{arm}-{training}"] for arm in ("real", "synthetic"))
        different = [pair for pair in zip(real.command, synthetic.command, strict=True) if pair[0] != pair[1]]
        assert different == [("nnUNetTrainer_5epochs", "nnUNetTrainerFVAESynthRaw_5epochs")]
        assert real.after == synthetic.after


def test_diffusion_and_synthesis_know_the_training_cases_alone():
    steps = {step.name: step for step in steps_of()}
    assert "imagesTs" not in " ".join(steps["3-diffusion"].command + steps["4-synthesize"].command)
    assert options_of(steps["1-dataset"])["--n-train"] == ["4"]


def test_every_training_is_predicted_and_evaluated_in_one_comparison():
    steps = steps_of()
    trained = {step.name.removeprefix("7-train-") for step in steps if step.name.startswith("7-")}
    assert trained == {"real-1", "real-2", "synthetic-1", "synthetic-2"}
    predicted = {options_of(step)["-o"][0] for step in steps if step.name.startswith("8-")}
    evaluation = steps[-1]
    assert predicted == {part for part in evaluation.command if part.startswith("predictions_")}
    assert options_of(evaluation)["--names"] == ["real_1", "real_2", "synthetic_1", "synthetic_2"]
    assert {name.removeprefix("8-predict-") for name in evaluation.after} == trained


def test_arms_are_compared_by_the_mean_of_their_trainings_in_each_case(tmp_path):
    # the same by hand: real 0.5, 0.6, 0.7 and synthetic 0.6, 0.8, 1.0 in three cases
    rows = [("label_name", "model", "case", "measure", "value")]
    for measure in experiment_synthetic.MEASURES:
        for number, (real, synthetic) in enumerate([(0.5, 0.6), (0.6, 0.8), (0.7, 1.0)]):
            for model, value in (("real_1", real - 0.1), ("real_2", real + 0.1)):
                rows.append(("tumour", model, f"case_{number}", measure, value))
            for model, value in (("synthetic_1", synthetic + 0.2), ("synthetic_2", synthetic - 0.2)):
                rows.append(("tumour", model, f"case_{number}", measure, value))
    # what is said of the organ does not count
    rows += [("pancreas", *row[1:4], 0.0) for row in rows[1:]]
    (tmp_path / "comparison_cases.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    lines = experiment_synthetic.compared(tmp_path)
    assert len(lines) == len(experiment_synthetic.MEASURES)
    assert lines[0].startswith("Dice: 0.600 real, 0.800 synthetic, +0.200 (+0.100 to +0.3")
    assert lines[0].endswith("p 0.250, 3 cases")
