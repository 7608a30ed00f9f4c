"""The report: from collected scores to tables, pictures and words, and from these to Markdown and a page."""
