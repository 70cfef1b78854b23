"""The readers turn the raw files of packaged sources into clean rows."""

import bz2
import gzip
import json
import zipfile
from pathlib import Path

from llm2comp.data.readers import documents, labelled, news, pubmed, short_texts, wikipedia

WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>Ferry</title><ns>0</ns><revision><text>{{Infobox}}
'''Ferry''' is a [[boat|ship]].&lt;ref&gt;Smith, ''Boats''&lt;/ref&gt; SENTENCES
[[File:Ferry.jpg|thumb|A ferry]]
{|
| a table SENTENCES
|}
Too short.</text></revision></page>
<page><title>Talk</title><ns>1</ns><revision><text>SENTENCES</text></revision></page>
<page><title>Boat</title><ns>0</ns><redirect title="Ferry"/><revision><text>SENTENCES</text>
</revision></page>
</mediawiki>"""


def test_mark_up_of_wikipedia_is_removed(tmp_path: Path) -> None:
    dump = WIKI.replace("SENTENCES", " ".join(["It crosses the water."] * 20))
    (tmp_path / "enwiki-x.bz2").write_bytes(bz2.compress(dump.encode()))
    (row,) = wikipedia.enwiki_passages(tmp_path)
    assert row["text"].startswith("Ferry is a ship. It crosses the water. It")


def test_a_paragraph_has_the_title_of_its_article_and_section(tmp_path: Path) -> None:
    prose = " ".join(["It crosses the water."] * 20)
    dump = WIKI.replace("Too short.", f"== ''Early'' times ==\n{prose} End.").replace(
        "SENTENCES", prose
    )
    test_article = (
        dump.partition("<page>")[2].partition("</page>")[0].replace("Ferry", "Steam engine")
    )
    dump = dump.replace("</mediawiki>", f"<page>{test_article}</page></mediawiki>")
    (tmp_path / "enwiki-x.bz2").write_bytes(bz2.compress(dump.encode()))
    rows = list(wikipedia.enwiki_titles(tmp_path))
    assert [row["anchor"] for row in rows] == ["Ferry", "Ferry: Early times"]
    assert [row["positive"][:14] for row in rows] == ["Ferry is a shi", "It crosses the"]
    assert len(list(wikipedia.enwiki_passages(tmp_path))) == 4


def write_json_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_boolq_for_training_has_no_article_of_the_sets_for_evaluation(tmp_path: Path) -> None:
    train = [
        ("is water wet", "Water -- Water is a liquid."),
        ("is water a gas", "Water -- Water is a liquid."),
        ("is ice cold", "Ice -- Ice is cold -- very cold."),
    ]
    test = [("is fire hot", "Fire -- Fire is hot.")]
    others = [
        ("does fire burn", "Fire -- Fire burns wood."),  # another paragraph of a test article
        ("is a flame hot", "Flame -- Fire is hot."),  # a test paragraph in another article
        ("is oxygen a gas", "Oxygen -- Oxygen is an element."),  # an article of SQuAD dev
    ]
    for name, pairs in {"combined": [*train, *test, *others], "test": test}.items():
        rows = [{"question": question, "passage": passage} for question, passage in pairs]
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    water, ice = "Water is a liquid.", "Ice is cold -- very cold."
    assert list(wikipedia.boolq_train_pairs(tmp_path)) == [
        {"anchor": "is water wet", "positive": water},
        {"anchor": "is water a gas", "positive": water},
        {"anchor": "is ice cold", "positive": ice},
    ]
    assert list(wikipedia.boolq_titles(tmp_path)) == [
        {"anchor": "Water", "positive": water},
        {"anchor": "Ice", "positive": ice},
    ]
    assert [row["text"] for row in wikipedia.boolq_train_passages(tmp_path)] == [water, ice]
    assert list(wikipedia.boolq_dev(tmp_path)) == [
        {"question": "is fire hot", "context": "Fire is hot."}
    ]
    assert len(list(wikipedia.boolq_pairs(tmp_path))) == 7


def test_documents_with_summaries_and_questions(tmp_path: Path) -> None:
    rows = [{"summary": "Short. ", "document": "Long."}, {"summary": "Empty.", "document": " "}]
    write_json_lines(tmp_path / "test.jsonl", rows)
    assert list(documents.summary_pairs(tmp_path)) == [{"anchor": "Short.", "positive": "Long."}]

    write_json_lines(tmp_path / "test.jsonl", [{"question": " Who?", "passage": "Story."}])
    assert list(documents.narrativeqa_pairs(tmp_path)) == [{"anchor": "Who?", "positive": "Story."}]


def article(journal: str, title: str, abstract: str, language: str = "eng") -> str:
    parts = f"<Abstract><AbstractText>{abstract}</AbstractText></Abstract>" if abstract else ""
    return (
        f"<PubmedArticle><MedlineCitation><Article><Journal><Title>{journal}</Title></Journal>"
        f"<ArticleTitle>{title}</ArticleTitle>{parts}<Language>{language}</Language>"
        "</Article></MedlineCitation></PubmedArticle>"
    )


def test_articles_of_the_test_journals_are_not_for_training(tmp_path: Path) -> None:
    old = [
        article("Old", "A <i>rat</i> study", "Rats ran."),
        article("Old", "No abstract", ""),
        article("Old", "Etude", "Les rats.", "fre"),
    ]
    new = [article(f"J{i}", f"Title {i}{j}", "Text.") for i in range(20) for j in range(2)]
    new.append(article("Rare", "Rare title", "Rare text."))
    for name, articles in {"pubmed20n0014": old, "pubmed21n1298": new}.items():
        xml = f"<PubmedArticleSet>{''.join(articles)}</PubmedArticleSet>"
        (tmp_path / f"{name}.xml.gz").write_bytes(gzip.compress(xml.encode()))
    assert list(pubmed.pubmed_pairs(tmp_path)) == [
        {"anchor": "A rat study", "positive": "Rats ran."},
        {"anchor": "Rare title", "positive": "Rare text."},
    ]
    assert [row["text"] for row in pubmed.pubmed_passages(tmp_path)] == [
        "Rats ran.",
        "Rare text.",
    ]
    labels = [row["label"] for row in pubmed.pubmed_journals(tmp_path)]
    assert len(labels) == 40
    assert "Rare" not in labels
    assert list(pubmed.pubmed_journals_dev(tmp_path)) == [
        {"text": "A rat study", "label": "Old"},
        {"text": "No abstract", "label": "Old"},
    ]


def test_marks_of_the_parts_of_an_abstract_are_removed(tmp_path: Path) -> None:
    passage = "Context (1): Rats\u00a0ran.\nContext (2): See Context (3): later.\n"
    for name in ("pqal", "pqaa"):
        write_json_lines(
            tmp_path / name / "test.jsonl", [{"question": f"{name}?", "passage": passage}]
        )
    positive = "Rats ran. See Context (3): later."
    assert list(pubmed.pubmedqa_pairs(tmp_path)) == [
        {"anchor": "pqal?", "positive": positive},
        {"anchor": "pqaa?", "positive": positive},
    ]


def test_news_are_split_by_day_and_only_unique_titles_are_paired(tmp_path: Path) -> None:
    lines = [
        'A,2017/3/26,"One, two\nthree"',
        "B,2017/3/1,",
        "In brief,2017/3/1,Four",
        "In brief ,2017/3/2,Five",
        ",2017/3/3,Six",
        " C ,          2016/12/30 7:11,Seven",
        "D,2017/3/27,Eight",
    ]
    with zipfile.ZipFile(tmp_path / "NewsArticles.zip", "w") as file:
        file.writestr("NewsArticles.csv", "\n".join(["title,publish_date,text", *lines]))
    texts = [row["text"] for row in news.news_passages(tmp_path)]
    assert texts == ["One, two\nthree", "Four", "Five", "Six", "Seven", "Eight"]
    assert list(news.news_titles(tmp_path)) == [
        {"anchor": "A", "positive": "One, two\nthree"},
        {"anchor": "C", "positive": "Seven"},
    ]
    assert list(news.news_dev(tmp_path)) == [{"question": "D", "context": "Eight"}]


def test_sentences_come_in_the_order_of_documents(tmp_path: Path) -> None:
    for number in (10, 2):
        (tmp_path / f"doc-{number}.json").write_text(json.dumps([f"text {number}", " "]))
    assert list(short_texts.nlp_corpus_sentences(tmp_path)) == [
        {"text": "text 2"},
        {"text": "text 10"},
    ]


def test_stsb_train_has_only_its_split(tmp_path: Path) -> None:
    line = 'g\tfile\t2012\t1\t{}\tA "man.\tA person.\textra\n'
    for split in short_texts.STSB_SPLITS:
        (tmp_path / f"sts-{split}.csv").write_text(line.format(split) + line.format("3.9"))
    pair = {"anchor": 'A "man.', "positive": "A person."}
    expected = [pair | {"score": score} for score in ("train", "3.9")]
    assert list(short_texts.stsb_train(tmp_path)) == expected
    assert [row["split"] for row in short_texts.stsb(tmp_path)][::2] == [
        "train",
        "dev",
        "test",
    ]


def test_jeopardy_keeps_the_text_of_links(tmp_path: Path) -> None:
    rows = [{"Question": 'Seen <a href="x">here</a> &amp; there', "Answer": "owl"}]
    (tmp_path / "jeopardy_10k.json").write_text(json.dumps(rows))
    (row,) = short_texts.jeopardy_pairs(tmp_path)
    assert row == {"anchor": "Seen here & there", "positive": "owl"}


def test_labelled_sets(tmp_path: Path) -> None:
    header = "Category\tText\nd\tstring\nclass\t\n"
    for name in ("20newsgroups-test", "reuters-r8-train", "reuters-r8-test"):
        (tmp_path / f"{name}.tab").write_text(f"{header}sport\ta goal\n")
    assert list(labelled.newsgroups(tmp_path)) == [{"text": "a goal", "label": "sport"}]
    assert [row["split"] for row in labelled.r8(tmp_path)] == ["train", "test"]

    (tmp_path / "question_labels.txt").write_bytes(
        "HUM:ind Who is Zo\u00eb ?\nHUM:ind Who is Zo\u00eb ? \n".encode("latin-1")
    )
    assert list(labelled.trec(tmp_path)) == [{"text": "Who is Zo\u00eb ?", "label": "HUM"}]

    said = [{"text": text, "answer_start": 0} for text in ("two\nwords", "one", "one")]
    asked = {"id": "1", "question": "q", "answers": said}
    squad = {"paragraphs": [{"context": "c", "qas": [asked]}]}
    (tmp_path / "squaddev_v1.1.json").write_text(json.dumps({"data": [squad]}))
    assert list(labelled.squad_dev(tmp_path)) == [
        {"id": "1", "question": "q", "context": "c", "answers": "two words\none"}
    ]

    policy = {"context": "We share.", "question": "Shared?", "answer": "True"}
    (tmp_path / "test.jsonl").write_text(json.dumps(policy))
    (row,) = labelled.privacy_policy(tmp_path)
    assert row == {"question": "Shared?", "context": "We share.", "label": "True"}
