"""The lens: the identity at `paper`, where runs equal the printed recipes; uniform everywhere else."""

from pathlib import Path

import pytest

from replicate.config import load, published
from replicate.config.lens import resolve, resolve_evaluate

ROOT = Path(__file__).resolve().parents[1]
RECIPE_KEYS = {
    "lr": "base_lr",
    "weight_decay": "weight_decay",
    "batch_size": "batch_size",
    "warmup_epochs": "warmup_epochs",
    "epochs": "epochs",
    "mask_ratio": "mask_ratio",
    "decoder_depth": "decoder_depth",
    "decoder_width": "decoder_width",
    "layer_decay": "layer_decay",
    "label_smoothing": "label_smoothing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "input_size": "image_size",
}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def recipes():
    return published.recipes()


def numbers(recipe: dict, **chosen) -> dict:
    """The scalars of a printed recipe under this project's names; `chosen` picks one of a grid that the paper
    prints.
    """
    found = {
        ours: float(recipe[theirs])
        for theirs, ours in RECIPE_KEYS.items()
        if isinstance(recipe.get(theirs), (int, float, str))
    }
    return found | chosen


def test_paper_budget_is_the_identity(params):
    for name, stated in (params.pretrain_runs | params.evaluate_runs).items():
        resolved = params.resolve(name, "paper").model_dump()
        assert {k: v for k, v in resolved.items() if k != "backbone_kwargs"} == {
            k: v for k, v in stated.model_dump().items() if k != "backbone_kwargs"
        }, name


@pytest.mark.parametrize(
    ("run", "paper", "recipe", "chosen"),
    [
        ("full_75", "efficient_learners", "pretrain_mae", {}),
        ("light_75", "efficient_learners", "pretrain_ours", {"epochs": 100, "mask_ratio": 0.75}),
        ("light_90", "efficient_learners", "pretrain_ours", {"epochs": 100, "mask_ratio": 0.9}),
        ("default_100", "efficient_learners", "finetune_mae", {}),
        ("light_90_llrd_80", "efficient_learners", "finetune_ours", {"layer_decay": 0.8}),
        ("mae_base", "mae", "pretrain", {}),
        ("mae_vit_l", "mae", "pretrain", {"epochs": 1600}),
        ("mae_vit_b_ft", "mae", "finetune", {}),
        ("mae_base_ft", "mae", "finetune", {"epochs": 50}),
        ("mae_base_lin", "mae", "linear_probe", {}),
        ("mae_scratch_ft", "mae", "from_scratch", {"epochs": 200, "drop_path": 0.2, "ema": 0.9999}),
        ("mae_vit_b_scratch_ft", "mae", "from_scratch", {"epochs": 300, "drop_path": 0.1, "ema": 0.9999}),
        ("fastmim_vit_hog_128", "fastmim", "pretrain_vit_b", {}),
        ("fastmim_swin_hog_128", "fastmim", "pretrain_swin_b", {}),
        ("fastmim_vit_hog_128_ft", "fastmim", "finetune", {"layer_decay": 0.7}),
        ("fastmim_swin_hog_128_ft", "fastmim", "finetune", {"layer_decay": 0.8}),
        ("emae_85", "efficient_mae", "pretrain", {"epochs": 200}),
        ("emae_vit_b_85", "efficient_mae", "pretrain", {"epochs": 800}),
        ("emae_85_ft", "mae", "finetune", {"epochs": 50}),
        ("emae_vit_b_85_ft", "mae", "finetune", {"epochs": 100}),
        ("emae_85_lin", "mae", "linear_probe", {}),
    ],
)
def test_runs_equal_the_printed_recipes(params, recipes, run, paper, recipe, chosen):
    printed = recipes[paper][recipe]
    resolved = params.resolve(run, "paper")
    for key, value in numbers(printed, **chosen).items():
        assert getattr(resolved, key) == pytest.approx(value), f"{run}.{key}"
    assert not printed.get("betas") or list(resolved.betas) == printed["betas"]


def test_peak_learning_rates_are_the_printed_ones(params):
    assert params.resolve("full_75", "paper").peak_lr == pytest.approx(2.4e-3)
    assert params.resolve("light_90_llrd_65", "paper").peak_lr == pytest.approx(4e-3)


def blocks(run):
    return run.backbone_kwargs.get("depth") or run.backbone_kwargs["depths"]


@pytest.mark.parametrize("budget", ["smoke", "laptop", "proxy", "brief", "evening", "gpu"])
def test_ratios_that_carry_the_science_are_never_mapped(params, budget):
    for name, stated in params.pretrain_runs.items():
        run = params.resolve(name, budget)
        assert run.mask_ratio == stated.mask_ratio
        if stated.epochs:
            assert run.warmup_epochs / run.epochs == pytest.approx(stated.warmup_epochs / stated.epochs)
        if params.budgets[budget].max_depth is None:
            assert blocks(run) == blocks(params.resolve(name, "paper"))
            assert (run.decoder_depth, run.drop_blocks) == (stated.decoder_depth, stated.drop_blocks)
        assert run.image_size % run.stride == 0
    for name, stated in params.evaluate_runs.items():
        lens, source = params.budgets[budget], params.pretrain_runs[stated.pretrain]
        from_scratch = source.epochs == 0 and not getattr(stated, "classifier", None)
        expected = (from_scratch and lens.scratch_layer_decay) or stated.layer_decay
        assert params.resolve(name, budget).layer_decay == expected


@pytest.mark.parametrize("budget", ["smoke", "laptop", "proxy", "brief", "evening", "gpu"])
def test_epochs_and_resolutions_keep_their_order(params, budget):
    stated = sorted(params.pretrain_runs.items(), key=lambda item: item[1].epochs)
    resolved = [params.resolve(name, budget).epochs for name, _ in stated]
    assert resolved == sorted(resolved)


def test_a_power_draws_long_and_short_schedules_together(params):
    """At a power of one half the paper's 1,600 epochs are four times its 100; without one they are sixteen
    times.
    """
    budget = params.budgets["laptop"]
    for power, ratio in ((1.0, 16.0), (0.5, 4.0)):
        factor = 100.0 / 100**power
        lens = budget.model_copy(update={"pretrain_epochs": factor, "pretrain_epochs_power": power})
        short, long = (resolve(params.run(name), None, lens) for name in ("light_75", "full_75"))
        assert (short.epochs, long.epochs) == (100, 100 * ratio)
        assert long.warmup_epochs / long.epochs == pytest.approx(40 / 1600)


@pytest.mark.parametrize("budget", ["brief", "gpu"])
def test_hierarchies_keep_the_papers_grids(params, budget):
    for name in (
        "fastmim_swin_hog_128",
        "fastmim_cmt_s_hog_224",
        "fastmim_swin_pixel_64",
        "fastmim_mask_swin_64_50",
        "fastmim_mask_swin_16_75",
    ):
        stated, run = params.run(name), params.resolve(name, budget)
        assert run.image_size // run.stride == stated.image_size // stated.stride == stated.image_size // 32
        if stated.mask_unit:
            assert run.image_size // run.mask_unit == stated.image_size // stated.mask_unit
    ft = params.resolve("fastmim_swin_hog_128_ft", budget)
    assert ft.image_size // params.resolve("fastmim_swin_hog_128", budget).stride == 7


def test_hog_cells_follow_the_patch_and_dropped_blocks_the_depth(params):
    assert params.resolve("fastmim_vit_hog_128", "brief").target_options == {"cell": 4}
    assert params.resolve("fastmim_vit_hog_128", "paper").target_options == {}
    assert params.resolve("fastmim_depth_8", "gpu").drop_blocks == 4
    assert params.resolve("fastmim_depth_8", "smoke").drop_blocks == 1
    assert [params.resolve(f"fastmim_depth_{blocks}", "brief").drop_blocks for blocks in (8, 10)] == [2, 1]
    assert params.resolve("fastmim_swin_depth_2-2-16-2", "gpu").drop_blocks == (0, 0, 2, 0)
    assert all(
        params.resolve("fastmim_swin_depth_2-2-16-2", budget).drop_blocks == (0, 0, 1, 0)
        for budget in ("smoke", "brief")
    )


def test_stages_go_through_the_lens(params):
    stages = params.resolve("fastmim_progressive_vit_l", "brief").stages
    assert [(stage.until, stage.image_size) for stage in stages] == [(0.625, 32), (0.875, 40), (1.0, 48)]


def test_light_regularisation_is_light_in_every_stage(params):
    """Where a budget leaves out automatic augmentation and the smallest crops, no stage brings them back;
    `keep_view` keeps them.
    """
    run = params.run("daily_ft_s3")
    light = resolve_evaluate(
        run.model_copy(update={"keep_view": False}), params.run("full_75"), params.budgets["brief"]
    )
    assert light.auto_augment is None and light.crop_scale == (0.35, 1.0)
    assert [(stage.auto_augment, stage.crop_scale) for stage in light.stages] == [
        (None, (0.35, 0.4624)),
        (None, (0.35, 0.7056)),
        (None, (0.35, 1.0)),
    ]
    kept = params.resolve("daily_ft_s3", "brief")
    assert [(stage.auto_augment, stage.crop_scale) for stage in kept.stages] == [
        (stage.auto_augment, stage.crop_scale) for stage in run.stages
    ]


def test_p2dist_thresholds_follow_the_patch(params):
    from replicate.config.lens import resolve_pretrain

    run = params.run("light_90").model_copy(update={"decoder_beta": 26.0})
    laptop = resolve_pretrain(run, params.budgets["laptop"])
    assert laptop.decoder_beta == 13.0 and laptop.patch_size == 8


def test_a_probe_and_a_run_from_scratch_have_factors_of_their_own(params):
    brief = params.budgets["brief"]
    probe, tuned, scratch = (
        params.resolve(name, "brief") for name in ("mae_base_lin", "mae_base_ft", "mae_scratch_ft")
    )
    assert probe.epochs == round(90 * brief.probe_epochs) and probe.base_lr == pytest.approx(
        0.1 * brief.probe_lr
    )
    assert tuned.base_lr == pytest.approx(1e-3 * brief.evaluate_lr) and tuned.ema is None
    assert scratch.base_lr == pytest.approx(1e-4 * brief.scratch_lr) and scratch.ema == brief.ema
    assert params.resolve("scratch_llrd_80", "brief").base_lr == pytest.approx(1e-3 * brief.evaluate_lr)


def test_scratch_training_peaks_near_fine_tuning(params):
    """Of the same backbone, at every budget; a baseline at eight times the rate would be no baseline."""
    for name in (name for name in params.runs if name.endswith("_scratch_ft") and name.startswith("fastmim")):
        tuned = (
            "fastmim_"
            + {"vit": "vit_hog_128", "swin_l": "swin_l_hog_128_ep400"}.get(of := name[8:-11], f"{of}_hog_128")
            + "_ft"
        )
        for budget in params.budgets:
            scratch, fine = (params.resolve(run, budget) for run in (name, tuned))
            assert scratch.base_lr * scratch.batch_size <= 2.01 * fine.base_lr * fine.batch_size, (
                name,
                budget,
            )


def test_partial_fine_tuning_never_tunes_more_blocks_than_there_are(params):
    assert params.resolve("mae_partial_18", "smoke").tuned_blocks == params.budgets["smoke"].max_depth
    assert params.resolve("mae_partial_18", "gpu").tuned_blocks == 18
