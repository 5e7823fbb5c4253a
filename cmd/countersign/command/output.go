package command

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"reflect"
	"strings"
	"time"
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

// viewOf returns the view of a kind of object whose columns a text lists: the head of
// each, and the field that it shows by its name in JSON, with a form in front where the
// usual one of the type will not do, as in "DEVICE id, EXPIRES until:not_after". A column
// without a field takes the next function of own. -o name prints the first column. It
// panics if there is no such field: the text is part of the program.
func viewOf[T any](env *Env, columns string, own ...func(T) string) view[T] {
	var v view[T]
	for column := range strings.SplitSeq(columns, ", ") {
		at := strings.LastIndexByte(column, ' ') + 1
		if column == strings.ToUpper(column) {
			v.cols, own = append(v.cols, col[T]{column, own[0]}), own[1:]
			continue
		}
		form, field, found := strings.Cut(column[at:], ":")
		if !found {
			form, field = "", form
		}
		index := fieldIndex(reflect.TypeFor[T](), field)
		v.cols = append(v.cols, col[T]{strings.TrimSpace(column[:at]), func(item T) string {
			return env.cell(form, reflect.ValueOf(item).FieldByIndex(index).Interface())
		}})
	}
	v.name = v.cols[0].cell
	return v
}

// named returns v with another name for -o name.
func (v view[T]) named(name func(T) string) view[T] {
	v.name = name
	return v
}

// fieldIndex returns the index of the field that has a name in JSON; one inside another
// is named by both with a dot between.
func fieldIndex(t reflect.Type, name string) []int {
	outer, inner, nested := strings.Cut(name, ".")
	for _, f := range reflect.VisibleFields(t) {
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag != outer {
			continue
		}
		if nested {
			return append(f.Index, fieldIndex(f.Type, inner)...)
		}
		return f.Index
	}
	panic(t.String() + " has no field " + name)
}

// cell writes the value of a field in a form, which of a bool are two words; without one
// it writes a time as its distance in the past, and lists and maps with commas.
func (env *Env) cell(form string, v any) string {
	switch v := v.(type) {
	case time.Time:
		switch form {
		case "until":
			return env.until(v)
		case "age":
			return span(env.Now().Sub(v))
		case "clock":
			return env.clock(v)
		case "past":
			if v.IsZero() {
				return ""
			}
		}
		return env.ago(v)
	case []string:
		return strings.Join(v, cmp.Or(map[string]string{"words": " ", "list": ", "}[form], ","))
	case map[string]string:
		if form == "pairs" {
			return pairs(v)
		}
		return tagText(v)
	case int64:
		switch {
		case form == "span":
			return span(time.Duration(v) * time.Second)
		case form == "octets":
			return octets(v)
		case form == "some" && v == 0:
			return ""
		}
	case bool:
		yes, no, _ := strings.Cut(form, "|")
		return map[bool]string{true: yes, false: no}[v]
	case string:
		if form == "hex" {
			return colons(v)
		}
	}
	return fmt.Sprint(v)
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

// show prints one object: as a table, one line a field.
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

// state colors the words of states.
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
