package devstack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// serverLog is the file that a server writes to.
type serverLog struct {
	file  *os.File
	start int64 // where this run of the server begins
}

// openLog opens a log to append to; one that has grown large is kept as .old and begun anew.
func openLog(path string) (*serverLog, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("rotate log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	start, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	return &serverLog{file: f, start: start}, nil
}

// quote returns the last lines of this run, to be put at the end of an error.
func (l *serverLog) quote() string {
	const most = 8 << 10
	info, err := os.Stat(l.file.Name())
	if err != nil {
		return fmt.Sprintf("; its log can't be read: %v", err)
	}
	from := max(l.start, info.Size()-most)
	f, err := os.Open(l.file.Name())
	if err != nil {
		return fmt.Sprintf("; its log can't be read: %v", err)
	}
	defer func() { _ = f.Close() }() // only read
	buf, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil {
		return fmt.Sprintf("; its log can't be read: %v", err)
	}
	if len(buf) == 0 {
		return "; its log " + l.file.Name() + " has nothing to say"
	}
	return fmt.Sprintf("; the end of %s:\n%s", l.file.Name(), tail(string(buf), 8))
}
