"""The words that workstation, exporter and device share: tasks, placeholders, names of files."""
