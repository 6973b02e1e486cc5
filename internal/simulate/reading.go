package simulate

import (
	"math/rand/v2"
	"strconv"
)

// reading is a slow random walk, as a room sensor's: each value is drawn back to the room's own mean.
type reading struct {
	mean, value float64 // °C
	humidity    float64 // %
	battery     float64 // %
}

func newReading(random *rand.Rand) reading {
	mean := 18 + 6*random.Float64()
	return reading{mean: mean, value: mean, humidity: 35 + 30*random.Float64(), battery: 60 + 40*random.Float64()}
}

// next returns the payload of the next event.
func (r *reading) next(random *rand.Rand) []byte {
	r.value += 0.1*random.NormFloat64() + 0.02*(r.mean-r.value)
	r.humidity = min(max(r.humidity+0.2*random.NormFloat64(), 5), 95)
	r.battery = max(r.battery-0.0005*random.Float64(), 0)
	b := make([]byte, 0, 80)
	b = append(b, `{"value":`...)
	b = strconv.AppendFloat(b, r.value, 'f', 2, 64)
	b = append(b, `,"unit":"celsius","humidity":`...)
	b = strconv.AppendFloat(b, r.humidity, 'f', 1, 64)
	b = append(b, `,"battery":`...)
	b = strconv.AppendFloat(b, r.battery, 'f', 1, 64)
	return append(b, '}')
}
