package command

import (
	"fmt"
	"io"
	"iter"
	"strings"
	"unicode/utf8"
)

// The formats of --output.
const (
	formatTable = "table" // shortened to the width of the terminal, if there is one
	formatWide  = "wide"  // a table with whole cells
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatName  = "name"
)

var formats = []string{formatTable, formatWide, formatJSON, formatYAML, formatName}

// chunk is how many rows of a table share their column widths: enough that a
// screen is even, and few enough that a long list starts at once.
const chunk = 500

// view says how a kind of object is shown. JSON and YAML are the object itself.
type view[T any] struct {
	name func(T) string // what -o name prints
	cols []col[T]
}

// col is one column of a table.
type col[T any] struct {
	head string
	cell func(T) string
}

// list shows at most limit objects; 0 is all.
func list[T any](env *Env, seq iter.Seq2[T, error], limit int, v view[T]) error {
	w := &listWriter[T]{out: env.stdout(), format: env.output, view: v}
	n := 0
	for item, err := range seq {
		if err != nil {
			return err
		}
		if err := w.add(item); err != nil {
			return err
		}
		if n++; n == limit {
			break
		}
	}
	if n == 0 && env.output == formatTable {
		env.stderr().linef("None.")
		return nil
	}
	return w.end()
}

type listWriter[T any] struct {
	out    printer
	format string
	view   view[T]
	rows   [][]string
	n      int
}

func (w *listWriter[T]) add(item T) (err error) {
	first := w.n == 0
	w.n++
	switch w.format {
	case formatName:
		_, err = fmt.Fprintln(w.out.w, printable(w.view.name(item)))
	case formatJSON:
		sep := ",\n"
		if first {
			sep = "[\n"
		}
		var b []byte
		if b, err = encodeJSON(item, "  "); err == nil {
			_, err = fmt.Fprintf(w.out.w, "%s  %s", sep, b)
		}
	case formatYAML:
		err = writeYAML(w.out.w, []T{item})
	default:
		if first {
			w.rows = append(w.rows, heads(w.view.cols))
		}
		w.rows = append(w.rows, cells(w.view.cols, item))
		if len(w.rows) >= chunk {
			err = w.flush()
		}
	}
	return err
}

// end writes what closes the list.
func (w *listWriter[T]) end() (err error) {
	switch {
	case w.format == formatJSON && w.n == 0:
		_, err = io.WriteString(w.out.w, "[]\n")
	case w.format == formatJSON:
		_, err = io.WriteString(w.out.w, "\n]\n")
	case w.format == formatYAML && w.n == 0:
		_, err = io.WriteString(w.out.w, "[]\n")
	case w.format == formatTable:
		err = w.flush()
	}
	return err
}

func (w *listWriter[T]) flush() error {
	err := writeTable(w.out, w.rows)
	w.rows = w.rows[:0]
	return err
}

// show prints one object: a table stands on its side.
func show[T any](env *Env, item T, v view[T]) error {
	p := env.stdout()
	switch env.output {
	case formatName:
		_, err := fmt.Fprintln(p.w, printable(v.name(item)))
		return err
	case formatJSON:
		return writeJSON(p.w, item)
	case formatYAML:
		return writeYAML(p.w, item)
	}
	var rows [][]string
	for _, c := range v.cols {
		if text := c.cell(item); text != "" {
			rows = append(rows, []string{strings.ToLower(c.head), printable(text)})
		}
	}
	return writeTable(p, rows)
}

func heads[T any](cols []col[T]) []string {
	row := make([]string, len(cols))
	for i, c := range cols {
		row[i] = c.head
	}
	return row
}

func cells[T any](cols []col[T], item T) []string {
	row := make([]string, len(cols))
	for i, c := range cols {
		row[i] = printable(c.cell(item))
	}
	return row
}

// writeTable aligns rows in columns, two spaces apart.
func writeTable(p printer, rows [][]string) error {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	width = fit(width, p.width)
	var b strings.Builder
	for _, row := range rows {
		for len(row) > 0 && row[len(row)-1] == "" {
			row = row[:len(row)-1]
		}
		for i, cell := range row {
			cell = p.shorten(cell, width[i])
			b.WriteString(p.state(cell))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(p.w, b.String())
	return err
}

// minColumn is what is left of a column at least when a table is fitted to a terminal.
const minColumn = 8

// fit returns the widths of columns that fit into a terminal: the widest is narrowed
// first, and the first column, which names the object, last of all.
func fit(width []int, terminal int) []int {
	if terminal <= 0 || len(width) == 0 {
		return width
	}
	total := 2 * (len(width) - 1)
	for _, w := range width {
		total += w
	}
	for total > terminal {
		widest := -1
		for i := 1; i < len(width); i++ {
			if width[i] > minColumn && (widest < 0 || width[i] > width[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return width
		}
		width[widest]--
		total--
	}
	return width
}

// shorten cuts a cell to a number of characters and marks that it did.
func (p printer) shorten(cell string, width int) string {
	if utf8.RuneCountInString(cell) <= width {
		return cell
	}
	mark := "…"
	if p.ascii {
		mark = "..."
	}
	return string([]rune(cell)[:max(width-utf8.RuneCountInString(mark), 0)]) + mark
}

// state colors the words that tell how something stands.
func (p printer) state(cell string) string {
	switch cell {
	case "active", "ok", "intact":
		return p.green(cell)
	case "pending", "registered", "superseded", "suspended", "held", "warn", "warning", "medium", "not ok":
		return p.yellow(cell)
	case "revoked", "retired", "expired", "fail", "alert", "high", "critical", "failed":
		return p.red(cell)
	}
	return cell
}

// itemsOf walks a list that is at hand.
func itemsOf[T any](items []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}
}
