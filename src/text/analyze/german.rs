//! German compounds taken apart by a list of common constituents.
//!
//! A word splits only when all of it is made of listed words and linking elements, so a wrong split is rare. The list
//! is our own: words of electrical and mechanical catalogues that occur inside longer ones.

/// The constituents of `word`; empty when it is not a compound of listed ones.
pub(super) fn split(word: &str) -> Vec<&str> {
    if word.chars().count() < 8 {
        return Vec::new();
    }
    let mut parts = Vec::new();
    if walk(word, &mut parts) && parts.len() > 1 { parts } else { Vec::new() }
}

fn walk<'a>(rest: &'a str, parts: &mut Vec<&'a str>) -> bool {
    if rest.is_empty() {
        return true;
    }
    // Longest constituent first; what follows may be an ending or a linking element.
    for (end, _) in rest.char_indices().skip(3).chain([(rest.len(), ' ')]).collect::<Vec<_>>().into_iter().rev() {
        let head = &rest[..end];
        if CONSTITUENTS.binary_search(&head).is_err() {
            continue;
        }
        parts.push(head);
        let tail = &rest[end..];
        let links = ["", "s", "es", "n", "en", "er", "e"];
        for link in links {
            if let Some(next) = tail.strip_prefix(link)
                && (next.is_empty() || next.chars().count() >= 3)
                && walk(next, parts)
            {
                return true;
            }
        }
        parts.pop();
    }
    false
}

/// Sorted.
const CONSTITUENTS: &[&str] = &[
    "abdeck", "abdeckung", "abgang", "ablauf", "abschluss", "absperr", "abstand", "abzweig", "achse",
    "adapter", "ader", "alarm", "aluminium", "anlage", "anschluss", "antrieb", "anzeige", "arbeit", "arm",
    "art", "aufbau", "aufsatz", "auge", "ausgang", "auslöse", "auslöser", "auto", "außen", "bahn", "balken",
    "band", "basis", "batterie", "bau", "bedien", "befestigung", "behälter", "bereich", "betrieb",
    "betriebs", "biege", "blech", "blei", "blende", "blitz", "block", "boden", "bogen", "bohr", "bohrer",
    "bolzen", "brand", "brenner", "brett", "brücke", "buchse", "bus", "bügel", "bürste", "dach", "dampf",
    "daten", "dauer", "decke", "deckel", "dicht", "dichtung", "dichtungs", "dienst", "digital", "doppel",
    "dose", "draht", "dreh", "drehzahl", "drossel", "druck", "durchfluss", "durchgang", "durchmesser",
    "düse", "ebene", "ecke", "einbau", "einfach", "eingang", "einheit", "einlass", "einsatz", "eisen",
    "elektro", "element", "empfänger", "end", "energie", "entladung", "entlüftung", "erde", "erder",
    "erdung", "ersatz", "fach", "faden", "fahr", "fall", "faser", "feder", "fehler", "fein", "feld",
    "fenster", "fern", "fest", "feucht", "feuer", "film", "filter", "flach", "flansch", "flasche", "fläche",
    "folie", "form", "frequenz", "front", "funk", "funktion", "fuß", "fühler", "führung", "gabel", "gas",
    "gebläse", "gefahr", "gehäuse", "gelenk", "generator", "gerät", "geräte", "gewicht", "gewinde",
    "gitter", "glas", "gleich", "gleis", "glied", "glocke", "griff", "grund", "gruppe", "größe", "gummi",
    "gurt", "guss", "haft", "hahn", "hahnen", "halb", "halogen", "hals", "halter", "halterung", "haltung",
    "hammer", "hand", "handlauf", "haube", "haupt", "haus", "haut", "hebe", "hebel", "heiz", "heizung",
    "hilfs", "hinter", "hinweis", "hitze", "hoch", "hochspannung", "hohl", "holz", "hub", "hut",
    "hutschiene", "höhe", "hülse", "impuls", "induktion", "industrie", "innen", "installation", "isolation",
    "isolier", "kabel", "kammer", "kanal", "kanne", "kante", "kanäle", "kappe", "karte", "kasten", "kegel",
    "keil", "kennzeichnung", "keramik", "kern", "kessel", "kette", "kipp", "klappe", "klebe", "klein",
    "klemme", "klima", "klinke", "knick", "knopf", "knoten", "kolben", "kombi", "kompakt", "kondensator",
    "kontakt", "kontroll", "kopf", "kopplung", "korb", "kraft", "kranz", "kreis", "kreuz", "kugel", "kunst",
    "kunststoff", "kupfer", "kupplung", "kurz", "kurzschluss", "kälte", "kühl", "kühlung", "lack", "lade",
    "ladung", "lager", "lampe", "land", "last", "lauf", "laufwerk", "leer", "leiste", "leistung",
    "leistungs", "leit", "leiter", "leitstelle", "leitung", "leitungs", "lenk", "leuchte", "leuchtmittel",
    "licht", "linie", "linse", "loch", "luft", "länge", "lötkolben", "lüfter", "lüftung", "magnet",
    "mantel", "marke", "maschine", "maschinen", "masse", "mast", "material", "mauer", "maß", "mechanik",
    "mehr", "meister", "melder", "meldung", "membran", "mess", "messer", "messing", "messung", "metall",
    "mitte", "mittel", "modul", "montage", "motor", "muffe", "mutter", "münze", "nach", "nagel", "nahrung",
    "naht", "nennstrom", "netz", "netzteil", "neutral", "nieder", "niederspannung", "niet", "nippel",
    "niveau", "norm", "not", "notlicht", "nut", "ober", "ofen", "ordner", "ort", "pack", "papier",
    "patrone", "pendel", "pfanne", "pfosten", "pinsel", "plan", "platine", "platte", "pol", "prüf",
    "prüfung", "puffer", "pumpe", "punkt", "putz", "quelle", "quer", "rad", "radius", "rahmen", "rand",
    "raster", "rauch", "raum", "regal", "regel", "regelung", "regen", "regler", "reihe", "reihen",
    "reinigung", "relais", "rest", "riegel", "riemen", "rille", "ring", "rinne", "roh", "rohr", "rolle",
    "rost", "rund", "röhre", "rück", "sammel", "sand", "sanitär", "satz", "schacht", "schale", "schalt",
    "schalter", "schaltung", "schalung", "scharnier", "schaufel", "schaum", "scheibe", "schelle", "schere",
    "schicht", "schiebe", "schiene", "schild", "schlag", "schlauch", "schleif", "schließ", "schlitz",
    "schloss", "schlüssel", "schmelz", "schmier", "schmutz", "schnapp", "schneid", "schnell", "schnitt",
    "schrank", "schraub", "schraube", "schritt", "schub", "schuh", "schutz", "schutzart", "schweiß",
    "schwelle", "schwenk", "schwer", "schwimm", "schütz", "sechskant", "seil", "seite", "sender", "sensor",
    "sicherheit", "sicherheits", "sicherung", "sicherungs", "signal", "sitz", "sockel", "sonde", "sonder",
    "spann", "spannung", "spannungs", "speicher", "sperr", "spiegel", "spindel", "spitze", "spray",
    "sprech", "spritz", "sprung", "spule", "stab", "stahl", "stand", "standard", "stange", "start",
    "station", "staub", "steck", "steckdose", "stecker", "steg", "stein", "stell", "stelle", "stellung",
    "stempel", "steuer", "steuerung", "stich", "stift", "stirn", "stoff", "stopfen", "stoß", "strahl",
    "strang", "straße", "strebe", "strom", "struktur", "stufe", "stuhl", "ständer", "stück", "stütze",
    "system", "säge", "säule", "tafel", "takt", "tank", "tasche", "tast", "taste", "taster", "tauch",
    "technik", "teil", "telefon", "teller", "temperatur", "test", "tief", "tiefe", "tisch", "topf", "tor",
    "trag", "trans", "transformator", "trenn", "trenner", "trennung", "treppe", "trichter", "trocken",
    "trommel", "tropf", "träger", "turm", "typ", "tür", "uhr", "umfang", "umschalter", "unter", "unterputz",
    "ventil", "ventilator", "verbinder", "verbindung", "verbindungs", "verdrahtung", "verlängerung",
    "verriegelung", "verschluss", "verschraubung", "versorgung", "verteil", "verteiler", "verteilung",
    "vor", "vorhang", "vorschalt", "waage", "wagen", "walze", "wand", "wandler", "wanne", "warm", "warn",
    "wartung", "wasser", "wechsel", "wechselrichter", "weiche", "weiß", "welle", "werk", "werkzeug",
    "wetter", "wickel", "wider", "widerstand", "wind", "winkel", "wippe", "wirbel", "wächter", "wärme",
    "zahl", "zahn", "zange", "zeichen", "zeiger", "zeit", "zelle", "zentral", "ziegel", "zieh", "ziel",
    "zimmer", "zink", "zone", "zubehör", "zufuhr", "zug", "zwischen", "zylinder", "zähler", "zünd",
    "öffner", "öffnung", "über", "überlast", "überspannung", "überstrom", "überwachung",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compounds_split_and_other_words_do_not() {
        assert_eq!(split("leitungsschutzschalter"), ["leitungs", "schutz", "schalter"]);
        assert_eq!(split("hutschienenmontage"), ["hutschiene", "montage"]);
        assert!(split("temperatur").is_empty());
        assert!(split("international").is_empty());
    }

    #[test]
    fn the_list_is_sorted() {
        assert!(CONSTITUENTS.is_sorted());
    }
}
