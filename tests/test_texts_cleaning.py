"""What LLMs really say, and what is left of it: texts, yes and no."""
# ruff: noqa: RUF001 (signs of many scripts)

from __future__ import annotations

import pytest

from recbole_mm.artifacts.executor import Failure
from recbole_mm.llm.texts import cleaning
from recbole_mm.llm.texts.cleaning import clean_answer, count_words, cut_words
from recbole_mm.llm.texts.yes_no import parse_yes_no

SHOE = "A red leather shoe with white laces."


@pytest.mark.parametrize(
    "answer",
    [
        SHOE,
        f"  {SHOE}\r\n\n",
        f"Sure! Here is the description:\n\n{SHOE}",
        f"Certainly. Here's a short product description in under 100 words:\n\n**{SHOE}**",
        f"Here are the requested sentences\n{SHOE}\n\nLet me know if you need anything else!",
        f"**Description:** {SHOE}",
        f"Product description: {SHOE} I hope this helps!",
        f"```\n{SHOE}\n```",
        f"```text\n{SHOE}",
        f"Here is the text:\n```markdown\n{SHOE}\n```\nFeel free to ask for changes.",
        f'```json\n{{"description": "{SHOE}"}}\n```',
        f'{{"answer": {{"description": "{SHOE}"}}}}',
        f'Here is the JSON: ["{SHOE}"]',
        f'"{SHOE}"',
        f"“{SHOE}”",
        f'Answer: "{SHOE}"',
        f"<think>The user wants {SHOE} maybe</think>{SHOE}",
        f"<think>\none\n</think>\n<thinking>two</thinking>\n\n{SHOE}",
        f"so the picture shows a shoe, I think</think>\n{SHOE}",
        f"◁think▷hm◁/think▷{SHOE}",
        f"{SHOE}<|im_end|>",
        f"<s> {SHOE}</s>",
        f"# {SHOE}",
        f"> {SHOE}\n\n---",
        f"- {SHOE}",
        f"A red **leather** shoe\nwith `white` laces.\n\n(Word count: 7)",  # noqa: F541
        "A red leather sh\u200boe with\x00 white\x07 laces.\ufeff",
        "A\tred leather   shoe\nwith white *laces*.",
        f"好的，以下是商品描述：{SHOE}",
    ],
)
def test_all_that_is_not_the_text_goes(answer: str) -> None:
    assert clean_answer(answer) == SHOE


@pytest.mark.parametrize(
    "text",
    [
        "The user's profile: mostly dramas.",
        'The band "The Who" and "Cream" shaped it.',
        "It measures 5 * 3 * 2 cm and costs $4.",
        "A snake_case_name and __init__ stay, so does 3.5.",
        "Here is where the story begins, in Rome.",
        "The user is an AI enthusiast who reads of robots.",
        "The user is a fan of AI. They watch science fiction.",
        "I can't stop loving you, says the song on this record.",
        "Sorry, Wrong Number is a thriller of 1948.",
        "This is a poster. It shows two men.",
        "{braces} are no JSON",
        "می‌خواهم یک کفش",
        "👩‍👩‍👧 family game",
        "红色的鞋，白色的鞋带。",
    ],
)
def test_a_good_text_stays_as_it_is(text: str) -> None:
    assert clean_answer(text) == text


def test_lists_become_one_line() -> None:
    assert clean_answer("Likes:\n- war films\n* westerns\n• long novels.\n- tea") == (
        "Likes: war films; westerns; long novels. tea"
    )
    assert clean_answer("1. one\n2) two\n3. three") == "one; two; three"
    assert clean_answer("1984. A novel") == "1984. A novel"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", cleaning.NOTHING_LEFT),
        (" \n\t", cleaning.NOTHING_LEFT),
        ("<|im_end|>", cleaning.NOTHING_LEFT),
        ("```\n```", cleaning.NOTHING_LEFT),
        ("\ufffd\ufffd", cleaning.NOTHING_LEFT),
        ("<think>I wonder what", cleaning.ONLY_THOUGHTS),
        ("<think>done</think>\n", cleaning.ONLY_THOUGHTS),
        ('{"description": "A red sh', cleaning.BROKEN_JSON),
        ("{", cleaning.BROKEN_JSON),
        ("['single', 'quotes']", cleaning.BROKEN_JSON),
        ("[" * 100_000, cleaning.BROKEN_JSON),
        ('{"title": "Shoe", "colour": "red"}', cleaning.UNCLEAR_JSON),
        ('{"n": 3}', cleaning.UNCLEAR_JSON),
        ("{}", cleaning.UNCLEAR_JSON),
        ("!!! ... ***", cleaning.NO_WORDS),
        ("I'm sorry, but I can't assist with that.", cleaning.REFUSED),
        ("I’m sorry, but I am unable to describe this image.", cleaning.REFUSED),
        ("Sorry, I can't do this.", cleaning.REFUSED),
        ("I cannot see images, as I only read text.", cleaning.REFUSED),
        ("As an AI language model, I don't have access to pictures.", cleaning.REFUSED),
        ("The user is a helpful AI assistant named SmolLM, trained by Hugging Face.", cleaning.REFUSED),
        ("You are a helpful AI. You like films.", cleaning.REFUSED),
        ("I'm an AI language model that writes profiles.", cleaning.REFUSED),
        ("抱歉，我无法描述这张图片。", cleaning.REFUSED),
        ("Lo siento, pero no puedo ayudar.", cleaning.REFUSED),
    ],
)
def test_what_cannot_be_read_is_a_failure_with_its_reason(answer: str, reason: str) -> None:
    assert clean_answer(answer) == Failure(reason)


def test_words_are_cut_at_a_sentences_end_or_a_words() -> None:
    assert cut_words("One two. Three four.", 4) == "One two. Three four."
    assert cut_words("One two three. Four five six", 5) == "One two three."
    assert cut_words("One. Two three, four five six", 3) == "One. Two three"
    assert cut_words("“One two three!” Four five", 4) == "“One two three!”"
    assert cut_words("version 3.5 of it. And more words", 5) == "version 3.5 of it."
    assert cut_words("红色的鞋。很好看。", 4) == "红色的鞋。"
    assert cut_words("红色的鞋很好看", 4) == "红色的鞋"
    assert count_words("red 鞋子 shoe.") == 4
    long = "word " * 500
    assert count_words(str(clean_answer(long, max_words=100))) == 100
    assert clean_answer(SHOE, max_words=1) == "A"


def test_an_answer_without_its_end_loses_what_is_incomplete() -> None:
    assert clean_answer("One two three. Four fi", ended=False) == "One two three."
    assert clean_answer("one two thr", ended=False) == "one two"
    assert clean_answer("One two three.", ended=False) == "One two three."
    assert clean_answer("O", ended=False) == "O"


def test_cleaning_is_stable_and_quick() -> None:
    for text in (SHOE, "Likes: war films; westerns. tea", "红色的鞋。"):
        assert clean_answer(str(clean_answer(text))) == text
    # Nothing here may take the square of the length: minutes, which the time limit of tests would show.
    for piece in ("<think>", "</think>", "**", "```", '{"', "here is ", "I'm sorry ", "- a\n", "“", "\n", "* "):
        assert clean_answer(piece * 5000)
        parse_yes_no(piece * 5000)


# --- yes and no ------------------------------------------------------------------------------------------------------

# fmt: off
YES = (
    "Yes", "yes", "YES!", "Yes.", " yes \n", "**Yes**", '"Yes"', "`yes`", "Yes, because of the genre.",
    "Yes - a good match", "Yes\n\nThe user likes it.", "Yes the user would like it", "Y", "ｙｅｓ",
    "Sure! Yes.", "I would say yes.", "The answer is yes.", "Answer: Yes", "Final answer: **YES**",
    "Answer yes or no: yes", "(yes/no) Yes", "Yes, no doubt.", '{"answer": "Yes"}', '{"answer": true}',
    '{"answer": "Ye', '{"answer": "y', '{"answer": "Yes", "reason": "no drama"}',
    '{"reason": "not a no", "answer": "Yes"}', '["yes"]', '{"likes": "yes"}',
    '```json\n{"answer": "yes"}\n```', "```\nYes\n```", 'Here is the JSON: {"answer": "yes"}',
    "<think>no, no</think>Yes", "true", "是", "是的。", "会", "对", "да", "Да.", "sí", "Sí, claro", "si", "はい",
    "はい、そうです。", "oui", "Oui !", "ja", "Ja, genau", "sim", "예", "네", "نعم", "Evet",
)
NO = (
    "No", "no", "NO.", "**No**", "No, the user never saw drama.", "N", 'I would say "no".',
    "The answer is no.", "Answer: no", '{"answer": "No"}', '{"answer": false}', '{"answer": "N',
    '{"answer": "no", "reason": "yes men bore them"}', "```\nNo\n```", "<think>yes</think>no",
    "no\nThe history shows yes-men only.", "false", "否", "不是", "不", "不会。", "нет", "Нет, спасибо", "いいえ",
    "non", "Non.", "nein", "Nein!", "não", "아니요", "لا", "Hayır",
)
NEITHER = (
    "", " ", "maybe", "yes and no", "Yes and no.", "Yes or no", "yes/no", "Yes. No.", "No, yes.",
    "yes, but no", "是否", "是或否", "да или нет", "yesterday", "There is no evidence.", "No evidence of it",
    "Not yes", "The answer is not yes.", "I can't say yes", "Know", "nobody", '{"answer": ""}',
    '{"answer": "', '{"answer": "maybe"}', '{"reason": "there is no', '{"a": "yes", "b": "no"}', "{", "{}",
    "<think>yes", "42", '{"answer": 1}', "Final answer: yes. Final answer: no.",
    "The user says yes to war and no to love", "Answer: unknown",
)
# fmt: on


@pytest.mark.parametrize("text", YES)
def test_yes(text: str) -> None:
    assert parse_yes_no(text) is True


@pytest.mark.parametrize("text", NO)
def test_no(text: str) -> None:
    assert parse_yes_no(text) is False


@pytest.mark.parametrize("text", NEITHER)
def test_neither_or_both_is_none(text: str) -> None:
    assert parse_yes_no(text) is None
