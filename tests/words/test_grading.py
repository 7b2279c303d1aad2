import json

import pytest
import torch

from absorb_pl.errors import AbsorbError, ContextLengthError, PromptError, RangeError
from absorb_pl.evaluators import SpellingGrader
from absorb_pl.models import load_language_model
from absorb_pl.words import first_letter_formatter, spelling_formatter

CASES = {
    "first_letter": ("{word} has the first letter:", first_letter_formatter(capitalize=True)),
    "spelling": ("{word}:", spelling_formatter(capitalize=True)),
}


def grader(model, words, case="first_letter", **options):
    template, formatter = CASES[case]
    return SpellingGrader(
        model, words, base_template=template, answer_formatter=formatter, shuffle_examples=False, **options
    )


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_golden_grades_whatever_the_batch_size(golden, golden_words, recorded_to, float32_rounding, case, batch_size):
    single, folder = golden
    model = load_language_model(str(folder), dtype="float64")
    expected = json.loads((folder / f"expected_grades_{case}.json").read_text())
    grades = grader(model, golden_words[:8], case).grade_words(
        [row["word"] for row in expected], batch_size=batch_size, show_progress=False
    )
    in_float32 = grader(single, golden_words[:8], case).grade_words(
        [row["word"] for row in expected], batch_size=batch_size, show_progress=False
    )
    assert len(grades) == len(in_float32) == len(expected) == 12
    for grade, rounded, row in zip(grades, in_float32, expected, strict=True):
        for field in ("word", "prompt", "answer", "prediction", "is_correct"):
            assert getattr(grade, field) == getattr(rounded, field) == row[field]
        for field in ("answer_log_prob", "prediction_log_prob"):
            assert getattr(grade, field) == pytest.approx(row[field], rel=recorded_to(folder.name))
            assert getattr(rounded, field) == pytest.approx(row[field], rel=float32_rounding(model))


def test_log_probabilities_are_those_of_one_unpadded_run(golden, golden_words):
    model = golden[0]
    grades = grader(model, golden_words[:8], "spelling").grade_words(golden_words[20:26], batch_size=6)
    for grade in grades:
        with torch.no_grad():
            logits = model(grade.prompt + " " + "-".join(grade.word.strip().upper()))[0].double()
        base = model.to_tokens(grade.prompt).shape[1]
        ids = model.to_tokens(grade.prompt + " " + "-".join(grade.word.strip().upper()))[0]
        picked = logits.log_softmax(-1)[torch.arange(base - 1, len(ids) - 1), ids[base:]]
        assert grade.answer_log_prob == pytest.approx(picked.sum().item(), rel=1e-5)


def test_a_right_answer_is_correct(golden, golden_words):
    model = golden[0]
    letter = CASES["first_letter"][1]
    grades = grader(model, golden_words[:8]).grade_words(golden_words[8:60], batch_size=26, show_progress=False)
    wrong = next(grade for grade in grades if grade.prediction.startswith(" "))
    told = SpellingGrader(
        model,
        golden_words[:8],
        base_template="{word} has the first letter:",
        answer_formatter=lambda word: wrong.prediction if word == wrong.word else letter(word),
        shuffle_examples=False,
    ).grade_word(wrong.word)
    assert told.is_correct
    assert told.answer_log_prob == told.prediction_log_prob
    assert told.answer_log_prob == pytest.approx(wrong.prediction_log_prob, rel=1e-5)


def test_hooks_act_while_grading_only(golden, golden_words):
    model = golden[0]
    subject = grader(model, golden_words[:8])
    before = subject.grade_word(golden_words[9])

    def silence(activation, **_):
        return torch.zeros_like(activation)

    hooked = subject.grade_words(
        [golden_words[9]], show_progress=False, fwd_hooks=[("blocks.1.hook_resid_post", silence)]
    )[0]
    assert hooked.answer_log_prob != pytest.approx(before.answer_log_prob, rel=1e-3)
    assert subject.grade_word(golden_words[9]) == before


def test_generated_hooks_act_at_the_words_of_each_batch(golden, golden_words):
    model, places = golden[0], []

    def silence_at(positions):
        places.append(positions)

        def silence(activation, **_):
            assert activation.shape[0] == len(positions)
            changed = activation.clone()
            changed[torch.arange(len(positions)), positions] = 0
            return changed

        return [("blocks.1.hook_resid_post", silence)]

    words = golden_words[9:12]
    subject = grader(model, golden_words[:8], hook_generator=silence_at)
    free = subject.grade_words(words, batch_size=2, show_progress=False)
    assert places == []
    hooked = subject.grade_words(words, batch_size=2, show_progress=False, use_hooks=True)
    assert [len(batch) for batch in places] == [2, 1]
    for grade, place, untouched in zip(hooked, [*places[0], *places[1]], free, strict=True):
        ids = model.to_tokens(grade.prompt + grade.answer)
        assert model.tokenizer.decode(ids[0, place]) == grade.word
        with torch.no_grad(), model.hooks(fwd_hooks=silence_at([place])):
            log_probs = model(ids)[0, -2].double().log_softmax(-1)
        assert grade.answer_log_prob == pytest.approx(log_probs[ids[0, -1]].item(), rel=1e-5)
        assert grade.answer_log_prob != pytest.approx(untouched.answer_log_prob, rel=1e-3)


def test_hooks_without_a_generator_are_refused(golden, golden_words):
    with pytest.raises(AbsorbError, match="hook_generator"):
        grader(golden[0], golden_words[:3]).grade_words(golden_words[5:6], show_progress=False, use_hooks=True)


def test_a_word_may_be_among_its_own_examples_if_asked_for(golden, golden_words):
    word = golden_words[2]
    clean = SpellingGrader(golden[0], golden_words[:3], shuffle_examples=False)
    assert clean.grade_word(word).prompt.count(f"{word}:") == 1
    told = SpellingGrader(golden[0], golden_words[:3], shuffle_examples=False, check_contamination=False)
    assert told.grade_word(word).prompt.count(f"{word}:") == 2


def test_answers_are_spelt_in_capitals_by_default(golden, golden_words):
    subject = SpellingGrader(golden[0], golden_words[:3], max_icl_examples=1)
    word = golden_words[9]
    assert subject.answer_formatter(word) == spelling_formatter(capitalize=True)(word)
    assert subject.grade_word(word).answer == " " + "-".join(word.strip().upper())
    assert SpellingGrader.answer_formatter(" cat") == " C-A-T"


def test_a_seed_settles_the_draw(golden, golden_words):
    subject = SpellingGrader(golden[0], golden_words[:30], max_icl_examples=3, seed=4)
    assert subject.grade_word(golden_words[2]) == subject.grade_word(golden_words[2])
    assert golden_words[2] not in subject.grade_word(golden_words[2]).prompt.split(":")[:-2]


def test_too_long_a_prompt_is_refused(golden, golden_words):
    with pytest.raises(ContextLengthError, match="longest prompt"):
        grader(golden[0], golden_words[:120]).grade_word(golden_words[3])


def test_an_empty_answer_is_refused(golden, golden_words):
    subject = SpellingGrader(golden[0], golden_words[:3], answer_formatter=lambda _: "")
    with pytest.raises(PromptError, match="answer_formatter"):
        subject.grade_word(golden_words[9])


def test_a_batch_size_below_one_is_refused(golden, golden_words):
    with pytest.raises(RangeError, match="batch_size"):
        grader(golden[0], golden_words[:3]).grade_words(golden_words[5:7], batch_size=0)


def test_no_words_have_no_grades(golden, golden_words):
    assert grader(golden[0], golden_words[:3]).grade_words([], show_progress=False) == []
