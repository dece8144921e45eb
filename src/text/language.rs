//! Which language a text is in.

/// The ISO 639-1 code of a text's language, where that can be told.
#[must_use]
pub fn detect(text: &str) -> Option<&'static str> {
    use whatlang::Lang;
    // The beginning tells enough, and a catalogue page can be long.
    let end = (0..=text.len().min(2000)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let info = whatlang::detect(&text[..end])?;
    if !info.is_reliable() && info.confidence() < 0.5 {
        return None;
    }
    Some(match info.lang() {
        Lang::Eng => "en",
        Lang::Deu => "de",
        Lang::Nld => "nl",
        Lang::Fra => "fr",
        Lang::Ita => "it",
        Lang::Spa => "es",
        Lang::Por => "pt",
        Lang::Swe => "sv",
        Lang::Dan => "da",
        Lang::Nob => "no",
        Lang::Fin => "fi",
        Lang::Hun => "hu",
        Lang::Ron => "ro",
        Lang::Rus => "ru",
        Lang::Tur => "tr",
        Lang::Pol => "pl",
        Lang::Ces => "cs",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn sentences_are_told_apart() {
        assert_eq!(super::detect("The circuit breaker protects the line against overload."), Some("en"));
        assert_eq!(
            super::detect("Der Leitungsschutzschalter schützt die Leitung gegen Überlast."),
            Some("de")
        );
        assert_eq!(super::detect("12345"), None);
    }
}
