//! A disk as a grid of cells, however large it is: how many bytes of each are data, and how many are dirty.
//!
//! Invariant: the cells are of equal size, a power of two, and cover the span; only the last may reach past its end.

use qbm::ByteRange;

/// The smallest cell, as that of a bitmap's granule.
const SMALLEST: u64 = 512;
/// A picture has no more rows than this.
const ROWS: u64 = 16;

/// The cells, row by row.
pub struct Grid {
    span: ByteRange,
    columns: usize,
    /// The bytes of a cell.
    cell: u64,
    cells: Vec<Cell>,
}

/// How many bytes of a cell are what.
#[derive(Clone, Copy, Default)]
struct Cell {
    data: u64,
    dirty: u64,
}

/// How a cell is shown. What is dirty comes before what is data: it is what somebody has to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shade {
    Zeros,
    SomeData,
    Data,
    SomeDirty,
    Dirty,
}

impl Shade {
    pub const ALL: [Self; 5] = [
        Self::Zeros,
        Self::SomeData,
        Self::Data,
        Self::SomeDirty,
        Self::Dirty,
    ];

    /// What it says, for the legend.
    pub fn words(self) -> &'static str {
        match self {
            Self::Zeros => "zeros",
            Self::SomeData => "some data",
            Self::Data => "data",
            Self::SomeDirty => "some dirty",
            Self::Dirty => "dirty",
        }
    }
}

impl Grid {
    /// Nothing in it yet. `columns` is not zero.
    pub fn new(span: ByteRange, columns: usize) -> Self {
        let most = (columns as u64).saturating_mul(ROWS);
        let cell = span.len().div_ceil(most).next_power_of_two().max(SMALLEST);
        let count = span.len().div_ceil(cell);
        Self {
            span,
            columns,
            cell,
            // No more than `most`: as many as the picture has room for.
            cells: (0..count).map(|_| Cell::default()).collect(),
        }
    }

    pub fn add_data(&mut self, extent: ByteRange) {
        self.add(extent, |cell| &mut cell.data);
    }

    pub fn add_dirty(&mut self, extent: ByteRange) {
        self.add(extent, |cell| &mut cell.dirty);
    }

    fn add(&mut self, extent: ByteRange, count: impl Fn(&mut Cell) -> &mut u64) {
        let mut start = self.span.start();
        let (first, size) = (extent.start().saturating_sub(start) / self.cell, self.cell);
        start += first * size;
        let cells = self
            .cells
            .iter_mut()
            .skip(usize::try_from(first).unwrap_or(usize::MAX));
        for cell in cells {
            if start >= extent.end() {
                break;
            }
            let end = start.saturating_add(size);
            *count(cell) += ByteRange::between(start.max(extent.start()), end.min(extent.end())).len();
            start = end;
        }
    }

    /// The bytes of a cell.
    pub fn cell_size(&self) -> u64 {
        self.cell
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Of each row, where it begins on the disk, and its cells.
    pub fn rows(&self) -> impl Iterator<Item = (u64, Vec<Shade>)> {
        let mut start = self.span.start();
        self.cells.chunks(self.columns).map(move |row| {
            let begin = start;
            let shades = row
                .iter()
                .map(|cell| {
                    let size = self.cell.min(self.span.end() - start);
                    start += size;
                    cell.shade(size)
                })
                .collect();
            (begin, shades)
        })
    }

    pub fn data(&self) -> u64 {
        self.cells.iter().map(|cell| cell.data).sum()
    }

    pub fn dirty(&self) -> u64 {
        self.cells.iter().map(|cell| cell.dirty).sum()
    }
}

impl Cell {
    fn shade(self, size: u64) -> Shade {
        match (self.dirty, self.data) {
            (0, 0) => Shade::Zeros,
            (0, data) if data < size => Shade::SomeData,
            (0, _) => Shade::Data,
            (dirty, _) if dirty < size => Shade::SomeDirty,
            _ => Shade::Dirty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qbm::MAX_LENGTH;

    fn shades(grid: &Grid) -> Vec<Shade> {
        grid.rows().flat_map(|(_, row)| row).collect()
    }

    #[test]
    fn cells_cover_every_length_in_at_most_sixteen_rows() {
        for length in [0, 1, 511, 512, 513, 1 << 20, (1 << 20) + 1, 1 << 40, MAX_LENGTH] {
            for columns in [8, 64, 128] {
                let grid = Grid::new(ByteRange::between(0, length), columns);
                let cells = shades(&grid).len() as u64;
                assert!(cells <= 16 * columns as u64, "{length}");
                assert!(grid.cell_size().is_power_of_two());
                assert_eq!(cells, length.div_ceil(grid.cell_size()));
                // No coarser than it must be.
                let half = length.div_ceil(grid.cell_size() / 2);
                assert!(grid.cell_size() == 512 || half > 16 * columns as u64, "{length}");
            }
        }
    }

    #[test]
    fn a_cell_tells_some_from_all_also_at_an_odd_end() {
        let mut grid = Grid::new(ByteRange::between(1000, 1000 + 512 * 4 + 10), 8);
        let all = |grid: &Grid| shades(grid);
        assert_eq!(all(&grid), [Shade::Zeros; 5]);
        grid.add_data(ByteRange::between(1000, 1512));
        grid.add_data(ByteRange::between(2023, 2025));
        grid.add_data(ByteRange::between(3048, 3058));
        let data = [
            Shade::Data,
            Shade::SomeData,
            Shade::SomeData,
            Shade::Zeros,
            Shade::Data,
        ];
        assert_eq!(all(&grid), data);
        grid.add_dirty(ByteRange::between(1511, 2024));
        grid.add_dirty(ByteRange::between(3048, 3058));
        let dirty = [
            Shade::SomeDirty,
            Shade::Dirty,
            Shade::SomeData,
            Shade::Zeros,
            Shade::Dirty,
        ];
        assert_eq!(all(&grid), dirty);
        assert_eq!((grid.data(), grid.dirty()), (524, 523));
    }

    #[test]
    fn one_extent_may_fill_the_largest_disk() {
        let whole = ByteRange::between(0, MAX_LENGTH);
        let mut grid = Grid::new(whole, 64);
        grid.add_dirty(whole);
        assert!(shades(&grid).iter().all(|shade| *shade == Shade::Dirty));
        assert_eq!(grid.dirty(), MAX_LENGTH);
    }
}
