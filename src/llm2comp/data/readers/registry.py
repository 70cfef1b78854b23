"""The reader of each packaged source that has rows."""

from llm2comp.data.readers import documents, labelled, news, pubmed, short_texts, wikipedia
from llm2comp.data.readers.lines import Reader

READERS: dict[str, Reader] = {
    "boolq-passages": wikipedia.boolq_passages,
    "boolq-train-passages": wikipedia.boolq_train_passages,
    "enwiki-passages": wikipedia.enwiki_passages,
    "news-passages": news.news_passages,
    "pubmed-passages": pubmed.pubmed_passages,
    "nlp-corpus-sentences": short_texts.nlp_corpus_sentences,
    "boolq-pairs": wikipedia.boolq_pairs,
    "boolq-train-pairs": wikipedia.boolq_train_pairs,
    "boolq-titles": wikipedia.boolq_titles,
    "enwiki-titles": wikipedia.enwiki_titles,
    "news-titles": news.news_titles,
    "pubmed-pairs": pubmed.pubmed_pairs,
    "pubmedqa-pairs": pubmed.pubmedqa_pairs,
    "narrativeqa-pairs": documents.narrativeqa_pairs,
    "xsum-pairs": documents.summary_pairs,
    "multilexsum-pairs": documents.summary_pairs,
    "jeopardy-pairs": short_texts.jeopardy_pairs,
    "stsb-train": short_texts.stsb_train,
    "boolq-dev": wikipedia.boolq_dev,
    "news-dev": news.news_dev,
    "pubmed-journals-dev": pubmed.pubmed_journals_dev,
    "stsb": short_texts.stsb,
    "squad-dev": labelled.squad_dev,
    "20newsgroups": labelled.newsgroups,
    "pubmed-journals": pubmed.pubmed_journals,
    "r8": labelled.r8,
    "trec": labelled.trec,
    "privacy-policy": labelled.privacy_policy,
}
