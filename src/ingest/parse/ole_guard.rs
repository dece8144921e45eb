//! What is looked at in an OLE compound file before it is read: calamine follows a chain of sectors until the length
//! that the file says, or until the memory ends, which no panic handler sees. Offsets are those of [MS-CFB] 2.2.

/// Sector numbers from here on are marks: the end of a chain, a free sector.
const MARKS: u32 = 0xffff_fffa;

/// Whether a chain of sectors has no end, or none before more bytes than the file has.
pub(super) fn is_endless(bytes: &[u8]) -> bool {
    // A file that is too short for its own header is calamine's to refuse.
    endless(bytes).unwrap_or(false)
}

fn endless(bytes: &[u8]) -> Option<bool> {
    let file = File { bytes, size: 1 << bytes.get(30).filter(|shift| matches!(shift, 9 | 12))? };
    let sectors = bytes.len() / file.size + 1;
    // The header lists the first 109 sectors of the table; the others are listed in a chain of their own.
    let mut listed: Vec<u32> = (0..109).map_while(|at| file.number(76 + 4 * at)).collect();
    let (mut next, mut lists) = (file.number(68)?, 0);
    while next < MARKS {
        lists += 1;
        if lists > sectors {
            return Some(true);
        }
        let mut list = file.sector(next)?;
        next = list.pop()?;
        listed.extend(list);
    }
    let parts = listed.into_iter().filter(|at| *at < MARKS).filter_map(|at| file.sector(at));
    let table: Vec<u32> = parts.take(sectors).flatten().collect();
    // The table of short streams says how many sectors it has, each stream how many bytes.
    if file.number(64)? as usize > sectors {
        return Some(true);
    }
    let (mut next, mut walked) = (file.number(48)?, 0);
    while let Some(start) = file.start(next).filter(|start| *start < bytes.len()) {
        walked += 1;
        let entries = &bytes[start..(start + file.size).min(bytes.len())];
        if walked > sectors
            || entries.as_chunks().0.iter().any(|entry| file.stream(entry) > bytes.len() as u64)
        {
            return Some(true);
        }
        next = *table.get(next as usize)?;
    }
    Some(false)
}

struct File<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl File<'_> {
    fn number(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }

    /// Where a sector begins; the header takes the place of one.
    fn start(&self, sector: u32) -> Option<usize> {
        (sector as usize).checked_add(1)?.checked_mul(self.size)
    }

    /// The numbers in a sector.
    fn sector(&self, sector: u32) -> Option<Vec<u32>> {
        let start = self.start(sector)?;
        let sector = self.bytes.get(start..start.checked_add(self.size)?)?;
        Some(sector.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect())
    }

    /// The length of the stream of a directory entry; 32 bits of it count in files with small sectors.
    fn stream(&self, entry: &[u8; 128]) -> u64 {
        const FREE: u8 = 0;
        match (entry[66], entry.last_chunk::<8>()) {
            (FREE, _) | (_, None) => 0,
            (_, Some(length)) => {
                u64::from_le_bytes(*length) & if self.size == 512 { 0xffff_ffff } else { u64::MAX }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = u32::MAX - 1;

    /// A file of a table in sector 0 and a directory from sector 1 on, whose first stream has this length.
    fn file(table: &[u32], stream: u32) -> Vec<u8> {
        let mut bytes = vec![0; 4 * 512];
        bytes[30] = 9;
        let mut put = |at: usize, number: u32| bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        (0..109).for_each(|at| put(76 + 4 * at, if at == 0 { 0 } else { u32::MAX }));
        put(68, END);
        put(48, 1);
        table.iter().zip(0..).for_each(|(number, at)| put(512 + 4 * at, *number));
        put(1024 + 120, stream);
        bytes[1024 + 66] = 2;
        bytes
    }

    #[test]
    fn a_chain_without_an_end_is_found() {
        assert!(!is_endless(&file(&[END, 2, END], 4)));
        assert!(is_endless(&file(&[END, 2, 1], 4)));
        assert!(is_endless(&file(&[0, 0], 4)));
        assert!(is_endless(&file(&[END, END], u32::MAX)));
        assert!(!is_endless(b"too short"));
    }
}
