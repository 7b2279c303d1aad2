"""What the files in SAEBench's format say of a study as a whole."""

from collections.abc import Sequence

from absorb_pl.reports.saebench_results import SaeBenchRun
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.rules.saebench import SaeBench060Rule
from absorb_pl.study.config import StudyConfig
from absorb_pl.study.stages import StudyStages


def saebench_run(config: StudyConfig, stages: StudyStages, rules: Sequence[AbsorptionRule]) -> SaeBenchRun | None:
    """What the files in SAEBench's format say of the run.

    Args:
        config: The settings.
        stages: The finished stages.
        rules: The rules asked for.

    Returns:
        What they have in common; None if there are no such files.
    """
    words, projections = stages.subject.words, stages.projections
    rule = next((rule for rule in rules if isinstance(rule, SaeBench060Rule)), None)
    if rule is None or projections is None or words.task.name != "first_letter":
        return None
    held_out = len(stages.probes.held_out(stages.subject.hooks[0]).index)
    positions = (words.prompts.word_positions - words.prompts.lengths).unique().tolist()
    return SaeBenchRun(
        rule=rule,
        rates=config.rates,
        eval_config={
            "model_name": config.model_name,
            "random_seed": config.seed,
            "f1_jump_threshold": config.splits.f1_jump,
            "max_k_value": config.splits.max_k,
            "prompt_template": words.task.template,
            **({"prompt_token_pos": positions[0]} if len(positions) == 1 else {}),
            "llm_batch_size": config.prompt_batch_size,
            "llm_dtype": config.model_dtype,
            "k_sparse_probe_l1_decay": config.k_sparse.l1_decay,
            "k_sparse_probe_batch_size": config.k_sparse.batch_size,
            "k_sparse_probe_num_epochs": config.k_sparse.max_epochs,
            "min_GT_probe_f1": config.rates.min_probe_f1,
            "min_feats_for_eval": rule.settings.min_letters,
            "eval_k_sparse_probe_batch_size": held_out,
        },
        facts={
            "word_positions_from_the_end": positions,
            "task": words.task.name,
            "num_words": len(words.texts),
            "num_held_out_words": held_out,
            "test_fraction": config.test_fraction,
            "max_icl_examples": words.task.max_icl_examples,
            "seeds": {"split_and_probes": config.seed, "prompts": config.task.seed},
        },
        sae_cfgs={name: projections.sae_cfg(name) for name in stages.subject.measured},
    )
