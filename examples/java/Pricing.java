import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

/** Knows prices: GET /price/{item}. Says when it has started, and on which port; tidies up when it is told to stop. */
public class Pricing {
    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.createContext("/price/", exchange -> {
            String item = exchange.getRequestURI().getPath().substring("/price/".length());
            byte[] price = String.valueOf(item.length() * 1.5).getBytes();
            exchange.sendResponseHeaders(200, price.length);
            exchange.getResponseBody().write(price);
            exchange.close();
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            server.stop(0);
            System.out.println("INFO Server - Stopped");
        }));
        server.start();
        System.out.println("INFO Server - Started, port " + server.getAddress().getPort());
    }
}
